#pragma once

// Files and folders that appear under their names whole or not at all, whatever happens meanwhile: they are
// written beside the final name as "NAME.tmp-...", synced, and renamed.

#include <chrono>
#include <filesystem>
#include <string_view>

#include "models/io/file_writer.h"

namespace ergon::io {

// A file that takes the place of `path` at commit(). The folder must exist. Without commit() nothing stays.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();

  FileWriter& writer() { return writer_; }
  void write(const void* data, std::size_t bytes) { writer_.write(data, bytes); }
  void write(std::string_view text) { writer_.write(text); }
  void commit();

 private:
  std::filesystem::path path_;
  FileWriter writer_;
  bool committed_ = false;
};

// A folder that takes the place of `path` at commit(); what was there before is then removed. Files are
// written below temporary().
class AtomicFolder {
 public:
  explicit AtomicFolder(const std::filesystem::path& path);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  const std::filesystem::path& temporary() const { return temporary_; }
  const std::filesystem::path& path() const { return path_; }
  // Syncs everything below temporary() and renames it.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
};

// AtomicFile with this content.
void write_file(const std::filesystem::path& path, std::string_view content);

// Removes a folder so that an interruption never leaves a part of it under its name. A missing one is no
// error.
void remove_folder(const std::filesystem::path& path);

// Removes what interrupted writers have left of `folder`'s entries whose names begin with `prefix`, if it has
// not been written to for `age`.
void remove_leftovers(const std::filesystem::path& folder, std::string_view prefix,
                      std::chrono::seconds age = std::chrono::seconds(0));

}  // namespace ergon::io
