photon_test(NAME utf8_test SOURCES utf8_test.cc LABELS unit)
photon_test(NAME tokenizer_test SOURCES tokenizer_test.cc
            LIBS photon_tokenizer protobuf::libprotobuf nlohmann_json::nlohmann_json LABELS unit)
photon_test(NAME detokenizer_test SOURCES detokenizer_test.cc LIBS photon_tokenizer LABELS unit)
photon_test(NAME spm_parity_test SOURCES spm_parity_test.cc
            LIBS photon_tokenizer protobuf::libprotobuf LABELS parity)
foreach(test IN ITEMS tokenizer_test detokenizer_test)
  target_compile_definitions(${test} PRIVATE PHOTON_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data")
endforeach()
