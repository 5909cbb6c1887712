#include "models/io/atomic_file.h"

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "core/log.h"

namespace ergon::io {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kTemporary = ".tmp-";

// A name beside `path` that no other writer uses, on this machine or another.
fs::path temporary_name(const fs::path& path) {
  static std::atomic<unsigned> count = 0;
  const auto now = std::chrono::system_clock::now().time_since_epoch().count();
  fs::path name = path;
  name += fmt::format("{}{}-{:x}-{}", kTemporary, ::getpid(), now, count++);
  return name;
}

// "a/b/" and "a/b" name the same folder, but only the second has a name to extend.
fs::path without_trailing_slash(const fs::path& path) {
  return path.has_filename() ? path : path.parent_path();
}

void sync_file(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail_errno("open", path);
  const int code = ::fsync(descriptor) != 0 ? errno : 0;
  ::close(descriptor);
  errno = code;
  if (code != 0 && code != EINVAL) fail_errno("sync", path);
}

void sync_tree(const fs::path& folder) {
  for (const fs::path& path : list_folder(folder, /*recursive=*/true)) {
    if (fs::is_directory(path)) sync_folder(path);
    if (fs::is_regular_file(path)) sync_file(path);
  }
  sync_folder(folder);
}

}  // namespace

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), writer_(temporary_name(path_), path_) {}

AtomicFile::~AtomicFile() {
  std::error_code ignored;
  if (!committed_) fs::remove(writer_.path(), ignored);
}

void AtomicFile::commit() {
  writer_.close();
  if (std::rename(writer_.path().c_str(), path_.c_str()) != 0) fail_errno("replace", path_);
  committed_ = true;
  sync_folder(path_.parent_path());
}

AtomicFolder::AtomicFolder(const fs::path& path)
    : path_(without_trailing_slash(path)), temporary_(temporary_name(path_)) {
  if (::mkdir(temporary_.c_str(), 0777) != 0) fail_errno("create folder", path_);
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);  // after commit(): the folder that was replaced, if any
}

void AtomicFolder::commit() {
  sync_tree(temporary_);
  struct ::stat status {};
  if (::lstat(path_.c_str(), &status) == 0) {
    ERGON_CHECK(S_ISDIR(status.st_mode), "[io] cannot replace '{}': it is not a folder", path_.string());
    if (::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) != 0) {
      // A file system without exchange: for a moment there is neither the old nor the new one.
      if (errno != EINVAL && errno != ENOSYS) fail_errno("replace", path_);
      remove_folder(path_);
      if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail_errno("replace", path_);
    }
  } else if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    fail_errno("create", path_);
  }
  sync_folder(path_.parent_path());
}

void write_file(const fs::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

void remove_folder(const fs::path& path) {
  const fs::path doomed = temporary_name(without_trailing_slash(path));
  if (std::rename(path.c_str(), doomed.c_str()) != 0) {
    if (errno == ENOENT) return;
    fail_errno("remove", path);
  }
  std::error_code error;
  fs::remove_all(doomed, error);
  ERGON_CHECK(!error, "[io] cannot remove '{}': {}", doomed.string(), error.message());
}

void remove_leftovers(const fs::path& folder, std::string_view prefix, std::chrono::seconds age) {
  for (const fs::path& path : list_folder(folder)) {
    const std::string name = path.filename().string();
    if (!name.starts_with(prefix) || name.find(kTemporary, prefix.size()) == std::string::npos) continue;
    std::error_code error;
    const fs::file_time_type written = fs::last_write_time(path, error);
    if (error || fs::file_time_type::clock::now() - written < age) continue;
    fs::remove_all(path, error);
    if (error) log().warn("[io] cannot remove '{}': {}", path.string(), error.message());
  }
}

}  // namespace ergon::io
