#pragma once

// Writing files so that they outlive a crash. Every error names the path and the system's reason.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

#include "models/io/checksum.h"

namespace ergon::io {

// Throws Error "[io] cannot <action> '<path>': <text of errno>".
[[noreturn]] void fail_errno(std::string_view action, const std::filesystem::path& path);

// Makes `folder` and its parents; no error if it is there already.
void create_folders(const std::filesystem::path& folder);

// The entries of `folder`, or all below it, in order of their names. Symbolic links to folders are not
// followed.
std::vector<std::filesystem::path> list_folder(const std::filesystem::path& folder, bool recursive = false);

// Waits until the names in `folder` are on the disk.
void sync_folder(const std::filesystem::path& folder);

// One open file being written; counts its bytes and their checksum.
class FileWriter {
 public:
  // Creates `path`, which must not exist yet; errors speak of it as `name` if that is given.
  explicit FileWriter(std::filesystem::path path, const std::filesystem::path& name = {});
  ~FileWriter();  // closes without waiting for the disk
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void write(const void* data, std::size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  // Waits until the content is on the disk, then closes the file.
  void close();

  const std::filesystem::path& path() const { return path_; }
  const std::filesystem::path& name() const { return name_; }
  std::uint64_t size() const { return size_; }
  std::uint64_t checksum() const { return checksum_.value(); }

 private:
  std::filesystem::path path_;
  std::filesystem::path name_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
  Checksum checksum_;
};

}  // namespace ergon::io
