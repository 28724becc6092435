// SPDX-License-Identifier: Apache-2.0
//
// --device cuda on the command line: real where there is a GPU, emulated in builds for that.
#include <cmath>

#include "evaluate/tiny_model.h"
#include "support/devices.h"
#include "tools/run_binary.h"

namespace heirloom {
namespace {

using test::run_binary;

class CudaCommand : public test::BinaryTest {
 protected:
  CudaCommand() {
    test::write_text(folder_ / "tokenizer.json", test::byte_tokenizer_json());
    test::write_tiny_model(folder_ / "model", test::tiny_config_json(), 0.2,
                           folder_ / "tokenizer.json");
    test::write_text(folder_ / "a.txt", "some words and then some other words, and more of them.");
  }
  std::string model() const { return (folder_ / "model").string(); }
  Json perplexity(const char* device) {
    const test::BinaryResult r =
        run_binary({"perplexity", "--model", model(), "--data", (folder_ / "a.txt").string(),
                    "--dtype", "float32", "--device", device, "--json", "-"});
    EXPECT_EQ(r.code, 0) << r.err;
    return parse_json(r.out, "stdout");
  }
  test::TemporaryDirectory folder_;
};

TEST_F(CudaCommand, ScoresAsTheCpuDoes) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  const Json cpu = perplexity("cpu"), cuda = perplexity("cuda");
  EXPECT_EQ(cuda.at("device"), "cuda:0");
  EXPECT_EQ(cuda.at("tokens"), cpu.at("tokens"));
  EXPECT_NEAR(cuda.at("nll_mean").get<double>(), cpu.at("nll_mean").get<double>(), 1e-5);
}

TEST_F(CudaCommand, GenerationIsNotThereYet) {
  HEIRLOOM_SKIP_WITHOUT_CUDA();
  expect_error(run_binary({"generate", "--model", model(), "--prompt", "a", "--device", "cuda"}), 2,
               {"expected cpu", "not run on CUDA yet", "--device cpu"});
}

TEST_F(CudaCommand, ADeviceThatIsNotThere) {
  const test::BinaryResult r = run_binary({"perplexity", "--model", model(), "--data",
                                           (folder_ / "a.txt").string(), "--device", "cuda:7"});
  expect_error(r, 2, {"[device]", "cuda:7"});
}

}  // namespace
}  // namespace heirloom
