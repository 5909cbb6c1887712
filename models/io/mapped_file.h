#pragma once

// A whole file as memory.

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

namespace ergon::io {

// Maps a regular file. Pages are read when they are first touched. The mapping is private: a write through
// bytes() stays in this process and never reaches the file. The file must not be shortened while it is
// mapped; replacing it (rename) is fine.
// Throws Error, naming the path and the reason, if the file cannot be opened or mapped.
class MappedFile {
 public:
  explicit MappedFile(std::filesystem::path path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::span<std::byte> bytes() const { return bytes_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(bytes_.data()), bytes_.size()}; }

 private:
  std::filesystem::path path_;
  std::span<std::byte> bytes_;
};

}  // namespace ergon::io
