// SPDX-License-Identifier: Apache-2.0
#include "heirloom/train/checkpoint_directory.h"

#include "heirloom/core/log.h"

namespace heirloom {
namespace {

constexpr const char* kMarker = "complete.json";
constexpr const char* kDoomed = ".removing-";

std::string file_hash(const fs::path& path) {
  const MappedFile file(path);
  ContentHash hash;
  hash.update(file.bytes().data(), file.bytes().size());
  return hash.hex();
}

/// Checkpoint directories by step, newest first.
std::vector<fs::path> list_checkpoints(const fs::path& run) {
  std::vector<fs::path> found;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", ignored)) {
    if (entry.path().filename().string().starts_with("step-")) found.push_back(entry.path());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

void remove_leftovers(const fs::path& run) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".writing-") || name.starts_with(kDoomed))
      fs::remove_all(entry.path(), ignored);
  }
}

/// Why a checkpoint may not be used; empty when every file matches the marker.
std::string damage(const fs::path& checkpoint) {
  try {
    const Json marker = read_json_file((checkpoint / kMarker).string());
    for (const auto& [name, expected] : marker.at("files").items()) {
      const fs::path file = checkpoint / name;
      if (!fs::exists(file)) return fmt::format("{} is missing", name);
      if (fs::file_size(file) != expected.at("bytes").get<uint64_t>())
        return fmt::format("{} has another size", name);
      if (file_hash(file) != expected.at("hash").get<std::string>())
        return fmt::format("{} has other contents", name);
    }
    return {};
  } catch (const std::exception& e) {
    return e.what();
  }
}

std::string write_whole_model(const fs::path& directory, const CheckpointContents& contents,
                              Dtype stored) {
  const std::string hash =
      write_model(directory, contents.model, contents.parameters, contents.optimizer.weights(),
                  contents.optimizer.weights_dtype(), stored, contents.tokenizer);
  if (!contents.generation.empty()) {
    write_file_atomically(directory / "generation_config.json", contents.generation);
  }
  return hash;
}

}  // namespace

fs::path checkpoint_path(const fs::path& run, int64_t step) {
  return run / "checkpoints" / fmt::format("step-{:08}", step);
}

fs::path save_checkpoint(const fs::path& run, int64_t step, const CheckpointContents& contents,
                         int64_t keep) {
  const fs::path target = checkpoint_path(run, step);
  Optimizer& optimizer = contents.optimizer;
  const Dtype dtype = optimizer.weights_dtype();
  remove_leftovers(run);
  write_directory_atomically(target, [&](const fs::path& directory) {
    Json files = Json::object();
    const auto note = [&](const char* name, const std::string& hash) {
      files[name] = {{"bytes", fs::file_size(directory / name)}, {"hash", hash}};
    };
    note("model.safetensors", write_whole_model(directory, contents, dtype));
    note("optimizer.safetensors", save_flat(directory / "optimizer.safetensors",
                                            contents.parameters, optimizer.moments(), dtype));
    write_file_atomically(directory / "trainer.json", dump_json(contents.trainer, 2) + "\n");
    for (const auto& entry : fs::directory_iterator(directory)) {
      const std::string name = entry.path().filename().string();
      if (!files.contains(name)) note(name.c_str(), file_hash(entry.path()));
    }
    write_file_atomically(directory / kMarker,
                          dump_json({{"step", step}, {"files", files}}, 2) + "\n");
  });
  if (keep > 0) {
    std::vector<fs::path> all = list_checkpoints(run);
    // Those of later steps are damaged, or this run would not stand here: they must not push sound ones out.
    std::erase_if(all, [&](const fs::path& path) { return path > target; });
    for (size_t i = static_cast<size_t>(keep); i < all.size(); ++i) {
      // Renamed first, so that a removal cut short leaves no half checkpoint under a checkpoint's
      // name.
      const fs::path doomed = all[i].parent_path() / (kDoomed + all[i].filename().string());
      std::error_code ignored;
      fs::rename(all[i], doomed, ignored);
      fs::remove_all(doomed, ignored);
    }
  }
  return target;
}

void save_final(const fs::path& run, const CheckpointContents& contents, Dtype stored) {
  write_directory_atomically(run / "final", [&](const fs::path& directory) {
    write_whole_model(directory, contents, stored);
  });
}

bool has_checkpoints(const fs::path& run) { return !list_checkpoints(run).empty(); }

std::optional<fs::path> newest_checkpoint(const fs::path& run) {
  for (const fs::path& checkpoint : list_checkpoints(run)) {
    const std::string problem = damage(checkpoint);
    if (problem.empty()) return checkpoint;
    log(LogLevel::kWarning, fmt::format("{} is damaged ({}); trying an older checkpoint",
                                        checkpoint.string(), problem));
  }
  return std::nullopt;
}

Json load_checkpoint(const fs::path& checkpoint, const CheckpointContents& contents) {
  Optimizer& optimizer = contents.optimizer;
  load_weights(checkpoint, contents.model, contents.parameters, optimizer.weights(),
               optimizer.weights_dtype());
  optimizer.publish_weights();
  load_flat(checkpoint / "optimizer.safetensors", contents.parameters, optimizer.moments());
  return read_json_file((checkpoint / "trainer.json").string());
}

}  // namespace heirloom
