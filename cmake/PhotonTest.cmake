# photon_test(NAME <name> SOURCES <files> [LIBS <targets>] [LABELS <labels>])
#
# Adds a GoogleTest program and registers each of its tests with CTest as <name>.<Subject>.<Sentence>.
# A test that runs longer than two minutes fails (four times that under a sanitizer).
include(GoogleTest)

if(PHOTON_SANITIZER)
  set(PHOTON_TEST_TIMEOUT_S 480)
else()
  set(PHOTON_TEST_TIMEOUT_S 120)
endif()

function(photon_test)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "NAME" "SOURCES;LIBS;LABELS")
  if(arg_UNPARSED_ARGUMENTS OR NOT arg_NAME OR NOT arg_SOURCES)
    message(FATAL_ERROR "photon_test(NAME SOURCES [LIBS] [LABELS]): got ${ARGV}")
  endif()
  add_executable(${arg_NAME} ${arg_SOURCES})
  target_link_libraries(${arg_NAME} PRIVATE ${arg_LIBS} GTest::gmock GTest::gtest_main)
  gtest_discover_tests(
    ${arg_NAME}
    TEST_PREFIX "${arg_NAME}."
    TEST_LIST ${arg_NAME}_TESTS
    DISCOVERY_MODE PRE_TEST
    DISCOVERY_TIMEOUT 60
    PROPERTIES TIMEOUT ${PHOTON_TEST_TIMEOUT_S})
  if(arg_LABELS)
    # gtest_discover_tests() loses all but the first of several labels, so CTest reads them from a
    # file of their own.
    set(labels_file "${CMAKE_CURRENT_BINARY_DIR}/${arg_NAME}_labels.cmake")
    file(WRITE "${labels_file}"
         "set_tests_properties(\${${arg_NAME}_TESTS} PROPERTIES LABELS \"${arg_LABELS}\")\n")
    set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${labels_file}")
  endif()
endfunction()
