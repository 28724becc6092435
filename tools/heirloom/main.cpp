// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <string_view>

#include "command.h"
#include "heirloom/core/error.h"
#include "heirloom/core/log.h"
#include "heirloom/io/file.h"

namespace heirloom::cli {
namespace {

int report(const char* kind, const std::string& line, int code) {
  std::fflush(stdout);
  std::fprintf(stderr, "heirloom: %s: %s\n", kind, line.c_str());
  return code;
}
int report(const char* kind, const std::exception& e, int code) {
  return report(kind, one_line(e.what()), code);
}

/// A config's problems stand one per line below the first.
std::string lines_of(std::string_view message) {
  constexpr std::string_view kBetween = "\n  ";
  std::string text;
  for (size_t at = 0; at <= message.size();) {
    const size_t end = std::min(message.find(kBetween, at), message.size());
    text += (at == 0 ? "" : "\n  ") + one_line(message.substr(at, end - at));
    at = end + kBetween.size();
  }
  return text;
}

int run(Cli& cli) {
  try {
    return cli.action();
  } catch (const ConfigError& e) {
    return report("config", lines_of(e.what()), kUsage);
  } catch (const ArgumentError& e) {
    return report("usage", e, kUsage);
  } catch (const UnsupportedError& e) {
    return report("unsupported", e, kUsage);
  } catch (const FormatError& e) {
    return report("bad input", e, kBadInput);
  } catch (const WriteError& e) {
    return report("file", e, kFailed);
  } catch (const IoError& e) {
    return report("file", e, kBadInput);
  } catch (const OutOfMemoryError& e) {
    return report("out of memory", e, kOutOfMemory);
  } catch (const fs::filesystem_error& e) {
    return report("file", e.what(), kBadInput);
  } catch (const std::bad_alloc&) {
    return report(
        "out of memory",
        "[memory] the system refused an allocation; use a smaller batch, context or model",
        kOutOfMemory);
  } catch (const std::exception& e) {
    return report("error", e, kFailed);
  }
}

}  // namespace
}  // namespace heirloom::cli

int main(int argc, char** argv) {
  using namespace heirloom::cli;
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit shows as a failed write, which names the file
  Cli cli;
  cli.app.name("heirloom");
  cli.app.description(
      "Pretrains, evaluates and runs transformers whose deeper layers inherit keys and values from "
      "earlier ones.");
  cli.app.require_subcommand(1);
  cli.app.set_version_flag("--version", "heirloom " HEIRLOOM_VERSION);
  add_train_command(cli);
  add_uptrain_command(cli);
  add_convert_command(cli);
  add_perplexity_command(cli);
  add_generate_command(cli);
  add_kv_command(cli);
  add_tokenizer_command(cli);
  add_data_command(cli);
  add_info_command(cli);
  add_bench_command(cli);
  try {
    cli.app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    return cli.app.exit(e) == 0 ? kDone : kUsage;
  }
  return run(cli);
}
