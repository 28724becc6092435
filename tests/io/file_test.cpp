// SPDX-License-Identifier: Apache-2.0
#include "heirloom/io/file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <set>
#include <utility>

#include "io/temporary_directory.h"

namespace heirloom {
namespace {

using test::TemporaryDirectory;

TEST(File, ReadsWholeFiles) {
  const TemporaryDirectory dir;
  EXPECT_THROW(read_file(dir / "absent"), IoError);
  EXPECT_THROW(read_file(dir.path()), IoError);
  for (const size_t size : {size_t{0}, size_t{1}, size_t{1} << 20}) {
    const std::string text(size, 'x');
    write_file_atomically(dir / "a", text);
    EXPECT_EQ(read_file(dir / "a"), text);
  }
  EXPECT_GT(read_file("/proc/self/maps").size(), 100u);  // reports a size of 0
}

TEST(File, ReadsNoMoreThanItShould) {
  const TemporaryDirectory dir;
  write_file_atomically(dir / "a", "12345");
  EXPECT_EQ(read_file(dir / "a", 5), "12345");
  EXPECT_THROW(read_file(dir / "a", 4), IoError);
  EXPECT_THROW(read_file("/dev/zero", 1 << 20), IoError);
  EXPECT_THROW(read_file("/proc/self/maps", 10), IoError);
  // The size of a disk, and nothing in it.
  { const FileWriter create(dir / "sparse"); }
  fs::resize_file(dir / "sparse", uintmax_t{1} << 40);
  EXPECT_THROW(read_file(dir / "sparse"), IoError);
}

TEST(File, PathsThatLeadNowhere) {
  const TemporaryDirectory dir;
  fs::create_symlink("loop", dir / "loop");
  fs::create_symlink("absent", dir / "dangling");
  const fs::path too_long = dir / std::string(300, 'x');
  for (const fs::path& path : {dir / "loop", dir / "loop/inside", too_long}) {
    for (const auto question : {&exists, &is_directory, &is_regular_file}) {
      try {
        question(path);
        FAIL() << path;
      } catch (const IoError& e) {
        EXPECT_NE(std::string(e.what()).find(path.string()), std::string::npos) << e.what();
      }
    }
  }
  for (const fs::path& path : {dir / "dangling", dir / "absent", dir / "absent/inside"}) {
    EXPECT_FALSE(heirloom::exists(path) || heirloom::is_directory(path) ||
                 heirloom::is_regular_file(path));
  }
  EXPECT_TRUE(heirloom::exists(dir.path()) && heirloom::is_directory(dir.path()) &&
              !heirloom::is_regular_file(dir.path()));
}

TEST(File, ErrorsNameThePath) {
  try {
    read_file("/nowhere/file");
    FAIL();
  } catch (const IoError& e) {
    EXPECT_NE(std::string(e.what()).find("/nowhere/file"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("No such file"), std::string::npos);
  }
}

TEST(File, AtomicWriteReplacesAndLeavesNothingElse) {
  const TemporaryDirectory dir;
  write_file_atomically(dir / "a", "one");
  write_file_atomically(dir / "a", "two");
  EXPECT_EQ(read_file(dir / "a"), "two");
  EXPECT_EQ(dir.names(), std::set<std::string>{"a"});
  EXPECT_THROW(write_file_atomically(dir / "b/c", "x"), WriteError);
  EXPECT_THROW(write_file_atomically(dir.path(), "x"), WriteError);
}

TEST(File, AtomicWriteFollowsLinks) {
  const TemporaryDirectory dir;
  write_file_atomically(dir / "real", "one");
  fs::create_symlink("real", dir / "link");
  write_file_atomically(dir / "link", "two");
  EXPECT_TRUE(fs::is_symlink(dir / "link"));
  EXPECT_EQ(read_file(dir / "real"), "two");
}

TEST(File, UncommittedAtomicFileLeavesNoTrace) {
  const TemporaryDirectory dir;
  write_file_atomically(dir / "a", "old");
  {
    AtomicFile file(dir / "a");
    file.writer().write("new");
    file.finish();
    EXPECT_EQ(dir.names().size(), 2u);
  }
  EXPECT_EQ(read_file(dir / "a"), "old");
  EXPECT_EQ(dir.names(), std::set<std::string>{"a"});
}

TEST(File, FullDiskIsAWriteError) {
  if (!fs::exists("/dev/full"))
    GTEST_SKIP() << "no /dev/full: writing to a full device is not tested";
  try {
    write_file_atomically("/dev/full", "x");
    FAIL();
  } catch (const WriteError& e) {
    EXPECT_NE(std::string(e.what()).find("No space left"), std::string::npos) << e.what();
  }
  FileWriter writer("/dev/full", FileWriter::Mode::kAppend);
  writer.write("buffered");
  EXPECT_THROW(writer.flush(), WriteError);
  EXPECT_NO_THROW(writer.flush());  // what failed is not written again
  EXPECT_THROW(writer.write(std::string(1 << 20, 'x')), WriteError);
}

TEST(File, SizeLimitLeavesTheOldFile) {
  const TemporaryDirectory dir;
  write_file_atomically(dir / "a", "old");
  // In a child: the limit and the ignored signal belong to the process.
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    int code = 1;
    try {
      write_file_atomically(dir / "a", std::string(1 << 20, 'x'));
    } catch (const WriteError&) {
      code = 0;
    }
    ::_exit(code);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_EQ(read_file(dir / "a"), "old");
  EXPECT_EQ(dir.names(), std::set<std::string>{"a"});
}

TEST(File, WriterAppendsCreatesAndPatches) {
  const TemporaryDirectory dir;
  {
    FileWriter writer(dir / "a");
    writer.write("0123456789");
    EXPECT_EQ(writer.bytes_written(), 10);
    writer.write_at(2, "XY", 2);
    writer.write("ab");
    writer.finish();
    EXPECT_THROW(writer.write("x"), WriteError);
  }
  EXPECT_EQ(read_file(dir / "a"), "01XY456789ab");
  {
    FileWriter writer(dir / "a", FileWriter::Mode::kAppend);
    writer.write("!");
  }
  EXPECT_EQ(read_file(dir / "a"), "01XY456789ab!");
  EXPECT_THROW(FileWriter(dir / "a", FileWriter::Mode::kCreate), WriteError);
  std::string expected;
  FileWriter writer(dir / "b");
  for (int i = 0; i < 3000; ++i) {
    const std::string piece(static_cast<size_t>(i * 37 % 1000), static_cast<char>('a' + i % 26));
    writer.write(piece);
    expected += piece;
  }
  const std::string large(700'000, 'L');
  writer.write(large);
  writer.finish();
  EXPECT_EQ(read_file(dir / "b"), expected + large);
}

TEST(File, MapsAndMoves) {
  const TemporaryDirectory dir;
  write_file_atomically(dir / "a", "hello");
  write_file_atomically(dir / "empty", "");
  MappedFile a(dir / "a");
  ASSERT_EQ(a.bytes().size(), 5u);
  MappedFile b = std::move(a);
  EXPECT_TRUE(a.bytes().empty());
  EXPECT_EQ(std::memcmp(b.bytes().data(), "hello", 5), 0);
  a = std::move(b);
  EXPECT_EQ(std::memcmp(a.bytes().data(), "hello", 5), 0);
  EXPECT_TRUE(MappedFile(dir / "empty").bytes().empty());
  EXPECT_THROW(MappedFile(dir.path()), IoError);
  EXPECT_THROW(MappedFile("/dev/null"), IoError);
  // A pipe without a writer would never open.
  ASSERT_EQ(::mkfifo((dir / "pipe").c_str(), 0600), 0);
  EXPECT_THROW(MappedFile(dir / "pipe"), IoError);
}

TEST(ContentHash, DependsOnEveryBitAndNotOnTheCuts) {
  std::string data(1000, '\0');
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 7);
  ContentHash whole;
  whole.update(data.data(), data.size());
  ContentHash cut;
  for (size_t i = 0, step = 1; i < data.size(); i += step, step = step % 13 + 1) {
    cut.update(data.data() + i, std::min(step, data.size() - i));
  }
  EXPECT_EQ(whole.hex(), cut.hex());
  EXPECT_EQ(whole.hex().size(), 16u);
  std::set<std::string> seen{whole.hex()};
  for (size_t bit = 0; bit < 8 * data.size(); ++bit) {
    std::string changed = data;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << bit % 8));
    ContentHash hash;
    hash.update(changed.data(), changed.size());
    EXPECT_TRUE(seen.insert(hash.hex()).second) << bit;
  }
  // Two flipped top bits (the signs of two floats) must not cancel; neither may appended zeros
  // vanish.
  std::string signs = data;
  signs[7] = static_cast<char>(signs[7] ^ 0x80);
  signs[15] = static_cast<char>(signs[15] ^ 0x80);
  for (const std::string& other : {signs, data + '\0'}) {
    ContentHash hash;
    hash.update(other.data(), other.size());
    EXPECT_TRUE(seen.insert(hash.hex()).second);
  }
}

}  // namespace
}  // namespace heirloom
