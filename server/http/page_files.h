// The files of the live page, which are part of the program.
#pragma once

#include <string_view>

namespace photon {

struct PageFile {
  std::string_view path;  // "/app.js"
  const char* content_type;
  std::string_view content;
};

// Null: there is no such file.
const PageFile* FindPageFile(std::string_view path);

}  // namespace photon
