#include <csignal>
#include <filesystem>

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "models/io/atomic_file.h"
#include "models/io/mapped_file.h"
#include "tests/support/reference.h"
#include "tests/support/temp_folder.h"

namespace ergon::io {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::read_text;
using test::TempFolder;
using test::write_text;
using Names = std::vector<std::string>;

// Writes fail with "File too large" past `bytes`: stands for a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const struct rlimit limit = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  void (*handler_)(int);
  struct rlimit before_ {};
};

// Root may write anywhere: for a scope, be somebody else.
class WithoutRoot {
 public:
  WithoutRoot() : was_root_(geteuid() == 0) {
    if (was_root_) {
      EXPECT_EQ(seteuid(65534), 0);
    }
  }
  ~WithoutRoot() {
    if (was_root_) {
      EXPECT_EQ(seteuid(0), 0);
    }
  }

 private:
  bool was_root_;
};

TEST(AtomicFile, AppearsAtCommitAndReplacesTheOldContent) {
  TempFolder folder;
  const fs::path path = folder / "a.txt";
  {
    AtomicFile file(path);
    file.write("first");
    EXPECT_FALSE(fs::exists(path));
    file.commit();
    EXPECT_EQ(read_text(path), "first");
    EXPECT_EQ(file.writer().size(), 5u);
    EXPECT_EQ(file.writer().checksum(), checksum("first", 5));
  }
  {
    AtomicFile file(path);
    file.write("second");
    EXPECT_EQ(read_text(path), "first");
  }  // not committed: an exception, say
  EXPECT_EQ(read_text(path), "first");
  EXPECT_EQ(folder.names(), Names{"a.txt"});
  write_file(path, "third");
  EXPECT_EQ(read_text(path), "third");
  EXPECT_EQ(folder.names(), Names{"a.txt"});
}

TEST(AtomicFile, WorksWithoutAFolderInThePath) {
  TempFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  write_file("plain.txt", "x");
  fs::current_path(before);
  EXPECT_EQ(read_text(folder / "plain.txt"), "x");
}

TEST(AtomicFile, ErrorsNameThePathAndTheReason) {
  TempFolder folder;
  const fs::path missing = folder / "none" / "a.txt";
  EXPECT_EQ(error_of([&] { write_file(missing, "x"); }),
            "[io] cannot create '" + missing.string() + "': No such file or directory");
  write_text(folder / "file", "");
  EXPECT_EQ(error_of([&] { write_file(folder / "file" / "a.txt", "x"); }),
            "[io] cannot create '" + folder.string() + "/file/a.txt': Not a directory");
  fs::create_directory(folder / "taken");
  write_text(folder / "taken" / "a.txt", "");
  EXPECT_EQ(error_of([&] { write_file(folder / "taken", "x"); }),
            "[io] cannot replace '" + folder.string() + "/taken': Is a directory");
  EXPECT_EQ(folder.names(), (Names{"file", "taken"}));
}

TEST(AtomicFile, AnUnwritableFolderIsNamed) {
  TempFolder folder;
  ::chmod(folder.path().c_str(), 0555);
  const WithoutRoot guard;
  EXPECT_EQ(error_of([&] { write_file(folder / "a.txt", "x"); }),
            "[io] cannot create '" + folder.string() + "/a.txt': Permission denied");
  EXPECT_EQ(error_of([&] { AtomicFolder(folder / "b"); }),
            "[io] cannot create folder '" + folder.string() + "/b': Permission denied");
  EXPECT_EQ(error_of([&] { create_folders(folder / "c" / "d"); }),
            "[io] cannot create folder '" + folder.string() + "/c/d': Permission denied");
}

TEST(AtomicFile, AFullDiskLeavesTheOldFileAndNoLeftover) {
  TempFolder folder;
  const fs::path path = folder / "a.txt";
  write_text(path, "old");
  const std::string large(100'000, 'x');
  {
    const FileSizeLimit limit(50'000);
    EXPECT_EQ(error_of([&] { write_file(path, large); }),
              "[io] cannot write '" + path.string() + "': File too large");
  }
  EXPECT_EQ(read_text(path), "old");
  EXPECT_EQ(folder.names(), Names{"a.txt"});
  // The text for a disk that is really full.
  errno = ENOSPC;
  EXPECT_EQ(error_of([] { fail_errno("write", "/x"); }), "[io] cannot write '/x': No space left on device");
}

TEST(AtomicFolder, AppearsAtCommitAndReplacesTheOldOne) {
  TempFolder folder;
  const fs::path path = folder / "set";
  {
    AtomicFolder fresh(path);
    fs::create_directory(fresh.temporary() / "inner");
    write_text(fresh.temporary() / "inner" / "a", "1");
    write_text(fresh.temporary() / "only-old", "1");
    EXPECT_FALSE(fs::exists(path));
    fresh.commit();
  }
  EXPECT_EQ(read_text(path / "inner" / "a"), "1");
  {
    AtomicFolder fresh(folder / "set/");
    write_text(fresh.temporary() / "a", "2");
    fresh.commit();
  }
  EXPECT_EQ(read_text(path / "a"), "2");
  EXPECT_FALSE(fs::exists(path / "only-old"));
  { AtomicFolder abandoned(path); }
  EXPECT_EQ(read_text(path / "a"), "2");
  EXPECT_EQ(folder.names(), Names{"set"});
}

TEST(AtomicFolder, DoesNotReplaceAFile) {
  TempFolder folder;
  write_text(folder / "set", "precious");
  AtomicFolder fresh(folder / "set");
  EXPECT_EQ(error_of([&] { fresh.commit(); }),
            "[io] cannot replace '" + folder.string() + "/set': it is not a folder");
  EXPECT_EQ(read_text(folder / "set"), "precious");
}

TEST(AtomicFolder, LeftoversAreRemovedByPrefixAndAge) {
  TempFolder folder;
  for (const char* name : {"set-1.tmp-12-ab-0", "set-2", "other.tmp-12-ab-0"}) {
    fs::create_directory(folder / name);
    write_text(folder / name / "a", "1");
  }
  remove_leftovers(folder.path(), "set-", std::chrono::hours(1));
  EXPECT_EQ(folder.names().size(), 3u);
  remove_leftovers(folder.path(), "set-");
  EXPECT_EQ(folder.names(), (Names{"other.tmp-12-ab-0", "set-2"}));
  remove_folder(folder / "set-2");
  remove_folder(folder / "never-was");
  EXPECT_EQ(folder.names(), Names{"other.tmp-12-ab-0"});
  EXPECT_EQ(error_of([&] { remove_leftovers(folder / "none", ""); }),
            "[io] cannot list folder '" + folder.string() + "/none': No such file or directory");
}

TEST(MappedFile, ShowsTheContentAndNeverWritesToTheFile) {
  TempFolder folder;
  write_text(folder / "a", "hello");
  const MappedFile file(folder / "a");
  EXPECT_EQ(file.text(), "hello");
  file.bytes()[0] = std::byte{'j'};
  EXPECT_EQ(file.text(), "jello");
  EXPECT_EQ(read_text(folder / "a"), "hello");
  write_text(folder / "empty", "");
  EXPECT_TRUE(MappedFile(folder / "empty").bytes().empty());
}

TEST(MappedFile, ErrorsNameThePathAndTheReason) {
  TempFolder folder;
  EXPECT_EQ(error_of([&] { MappedFile(folder / "none"); }),
            "[io] cannot open '" + folder.string() + "/none': No such file or directory");
  EXPECT_EQ(error_of([&] { MappedFile(folder.path()); }),
            "[io] cannot read '" + folder.string() + "': it is a folder, not a file");
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_EQ(error_of([&] { MappedFile(folder / "pipe"); }),
            "[io] cannot read '" + folder.string() + "/pipe': it is not a regular file");
}

}  // namespace
}  // namespace ergon::io
