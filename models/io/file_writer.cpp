#include "models/io/file_writer.h"

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include "core/error.h"

namespace ergon::io {
namespace fs = std::filesystem;

void fail_errno(std::string_view action, const fs::path& path) {
  const std::string reason = std::generic_category().message(errno);
  ERGON_FAIL("[io] cannot {} '{}': {}", action, path.string(), reason);
}

void create_folders(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  ERGON_CHECK(!error, "[io] cannot create folder '{}': {}", folder.string(), error.message());
}

std::vector<fs::path> list_folder(const fs::path& folder, bool recursive) {
  std::vector<fs::path> paths;
  try {
    if (recursive) {
      for (const auto& entry : fs::recursive_directory_iterator(folder)) paths.push_back(entry.path());
    } else {
      for (const auto& entry : fs::directory_iterator(folder)) paths.push_back(entry.path());
    }
  } catch (const fs::filesystem_error& error) {
    const fs::path& where = error.path1().empty() ? folder : error.path1();
    ERGON_FAIL("[io] cannot list folder '{}': {}", where.string(), error.code().message());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

void sync_folder(const fs::path& folder) {
  const int descriptor = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) fail_errno("open folder", folder);
  // Some network file systems cannot sync a folder and say EINVAL: nothing more can be done there.
  const int code = ::fsync(descriptor) != 0 ? errno : 0;
  ::close(descriptor);
  errno = code;
  if (code != 0 && code != EINVAL) fail_errno("sync folder", folder);
}

FileWriter::FileWriter(fs::path path, const fs::path& name)
    : path_(std::move(path)), name_(name.empty() ? path_ : name) {
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (descriptor_ < 0) fail_errno("create", name_);
}

FileWriter::~FileWriter() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void FileWriter::write(const void* data, std::size_t bytes) {
  constexpr std::size_t kMaxPiece = std::size_t{1} << 30;  // Linux writes at most 2^31 - 4096 bytes a call
  const char* next = static_cast<const char*>(data);
  std::size_t left = bytes;
  while (left > 0) {
    const ssize_t written = ::write(descriptor_, next, std::min(left, kMaxPiece));
    if (written < 0) {
      if (errno == EINTR) continue;
      fail_errno("write", name_);
    }
    checksum_.update(next, static_cast<std::size_t>(written));
    next += written;
    left -= static_cast<std::size_t>(written);
  }
  size_ += bytes;
}

void FileWriter::close() {
  if (::fsync(descriptor_) != 0 && errno != EINVAL && errno != EROFS) fail_errno("sync", name_);
  if (::close(std::exchange(descriptor_, -1)) != 0) fail_errno("close", name_);
}

}  // namespace ergon::io
