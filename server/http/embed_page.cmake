# Writes OUTPUT, page_files.h's definitions, from the files in FOLDER:
#   cmake -D FOLDER=... -D OUTPUT=... -P embed_page.cmake
set(type_html "text/html; charset=utf-8")
set(type_css "text/css; charset=utf-8")
set(type_js "text/javascript; charset=utf-8")
set(type_svg "image/svg+xml")

file(GLOB files RELATIVE "${FOLDER}" "${FOLDER}/*")
list(SORT files)
set(arrays "")
set(entries "")
foreach(file IN LISTS files)
  string(REGEX MATCH "[a-z]+$" extension "${file}")
  if(NOT DEFINED type_${extension})
    message(FATAL_ERROR "embed_page: ${file}: what is its content type?")
  endif()
  file(READ "${FOLDER}/${file}" bytes HEX)
  string(LENGTH "${bytes}" size)
  math(EXPR size "${size} / 2")
  string(REGEX REPLACE "(..)" "'\\\\x\\1'," bytes "${bytes}")
  string(MAKE_C_IDENTIFIER "k_${file}" name)
  string(APPEND arrays "constexpr char ${name}[] = {${bytes}};\n")
  set(path "/${file}")
  if(file STREQUAL "index.html")
    set(path "/")
  endif()
  string(APPEND entries "    {\"${path}\", \"${type_${extension}}\", {${name}, ${size}}},\n")
endforeach()
file(WRITE "${OUTPUT}" "#include \"server/http/page_files.h\"

namespace photon {
namespace {

${arrays}
constexpr PageFile kFiles[] = {
${entries}};

}  // namespace

const PageFile* FindPageFile(std::string_view path) {
  for (const PageFile& file : kFiles) {
    if (file.path == path) return &file;
  }
  return nullptr;
}

}  // namespace photon
")
