// SPDX-License-Identifier: Apache-2.0
#include "heirloom/train/run_config.h"

#include <cmath>
#include <numbers>

#include "heirloom/io/embedded.h"
#include "heirloom/io/field_reader.h"
#include "heirloom/io/file.h"

namespace heirloom {
namespace {

constexpr int64_t kMany = int64_t{1} << 40;

ModelConfig read_model(const Json& value, Problems& problems) {
  try {
    if (value.is_object()) return parse_model_config(value, "model");
    if (value.is_string()) {
      const std::string text = value.get<std::string>();
      if (fs::exists(text)) return read_model_config(text);
      if (text.ends_with(".json") || text.find('/') != std::string::npos) {
        problems.add("model", "expected an existing file, a preset name or an object; got \"{}\"",
                     text);
        return {};
      }
      return preset_model_config(text);
    }
    problems.add("model", "expected a path, a preset name or an object; got {}", quote_json(value));
  } catch (const ConfigError& e) {
    problems.add("model", "{}", e.what());
  }
  return {};
}

std::vector<std::string> read_paths(FieldReader& reader, const std::string& key,
                                    Problems& problems) {
  std::vector<std::string> paths;
  const Json* value = reader.take(key);
  if (value == nullptr) return paths;
  if (value->is_string()) return {value->get<std::string>()};
  if (value->is_array()) {
    for (const Json& item : *value) {
      if (item.is_string()) paths.push_back(item.get<std::string>());
    }
    if (!paths.empty() && paths.size() == value->size()) return paths;
  }
  problems.add(reader.path_of(key), "expected a path or a list of paths; got {}",
               quote_json(*value));
  return {};
}

std::string read_string(FieldReader& reader, const std::string& key, Problems& problems) {
  const Json* value = reader.take(key);
  if (value == nullptr) return {};
  if (value->is_string()) return value->get<std::string>();
  problems.add(reader.path_of(key), "expected a string; got {}", quote_json(*value));
  return {};
}

Dtype read_dtype(FieldReader& reader, const std::string& key) {
  static constexpr const char* kNames[] = {"float32", "bfloat16", "float64"};
  const std::string name = reader.choice(key, "float32", kNames);
  return name == "bfloat16"  ? Dtype::kBFloat16
         : name == "float64" ? Dtype::kFloat64
                             : Dtype::kFloat32;
}

void read_train(const Json& json, TrainConfig& t, Problems& problems) {
  FieldReader r(json, "train", problems);
  t.steps = r.integer("steps", std::nullopt, 0, kMany);
  t.batch_size = r.integer("batch_size", std::nullopt, 1, 1 << 24);
  t.sequence_length = r.integer("sequence_length", std::nullopt, 1, 1 << 24);
  t.micro_batch_size = r.integer("micro_batch_size", 0, 0, 1 << 24);
  if (t.micro_batch_size == 0) t.micro_batch_size = t.batch_size;
  if (problems.fine({"train.batch_size", "train.micro_batch_size"}) &&
      t.batch_size % t.micro_batch_size != 0) {
    problems.add("train.micro_batch_size", "expected a divisor of batch_size {}; got {}",
                 t.batch_size, t.micro_batch_size);
  }
  t.seed = static_cast<uint64_t>(r.integer("seed", 0, 0, INT64_MAX));
  t.dtype = read_dtype(r, "dtype");
  t.eval_every = r.integer("eval_every", 0, 0, kMany);
  t.eval_batches = r.integer("eval_batches", 32, 0, kMany);
  t.save_every = r.integer("save_every", 0, 0, kMany);
  t.keep = r.integer("keep", 2, 0, kMany);
  t.sample_every = r.integer("sample_every", 0, 0, kMany);
  t.sample_prompt = read_string(r, "sample_prompt", problems);
  t.sample_tokens = r.integer("sample_tokens", 64, 1, 1 << 20);
  if (const Json* recompute = r.take("recompute")) {
    if (recompute->is_boolean()) {
      t.recompute = recompute->get<bool>() ? Recompute::kBlock : Recompute::kNone;
    } else if (*recompute == "block" || *recompute == "none") {
      t.recompute = *recompute == "block" ? Recompute::kBlock : Recompute::kNone;
    } else {
      problems.add("train.recompute", "expected false, true, \"none\" or \"block\"; got {}",
                   quote_json(*recompute));
    }
  }
  if (const Json* init = r.object("init")) {
    FieldReader i(*init, "train.init", problems);
    t.init_std = i.number("std", 0.02, {0, 10});
    static constexpr const char* kResidual[] = {"none", "1/sqrt(2L)"};
    t.init_scale_residual = i.choice("residual", "none", kResidual) != "none";
    i.reject_unknown();
  }
  if (const Json* dropout = r.object("dropout")) {
    FieldReader d(*dropout, "train.dropout", problems);
    t.dropout_embedding = d.number("embedding", 0, {0, 0.999});
    t.dropout_attention = d.number("attention", 0, {0, 0.999});
    t.dropout_residual = d.number("residual", 0, {0, 0.999});
    d.reject_unknown();
  }
  t.save_dtype = read_dtype(r, "save_dtype");
  t.tf32 = r.boolean("tf32", false);
  t.capture = r.boolean("capture", true);
  r.reject_unknown();
}

void read_optimizer(const Json& json, OptimizerConfig& o, Problems& problems) {
  FieldReader r(json, "optimizer", problems);
  static constexpr const char* kNames[] = {"adamw"};
  r.choice("name", "adamw", kNames);
  o.lr = r.number("lr", std::nullopt, {0, 1e3});
  if (const Json* betas = r.take("betas")) {
    const bool two = betas->is_array() && betas->size() == 2 && (*betas)[0].is_number() &&
                     (*betas)[1].is_number();
    const double b1 = two ? (*betas)[0].get<double>() : -1,
                 b2 = two ? (*betas)[1].get<double>() : -1;
    if (!(b1 >= 0 && b1 < 1 && b2 >= 0 && b2 < 1)) {
      problems.add("optimizer.betas", "expected two numbers in [0, 1); got {}", quote_json(*betas));
    }
    o.beta1 = b1;
    o.beta2 = b2;
  }
  o.eps = r.number("eps", 1e-8, {0, 1, true});
  o.weight_decay = r.number("weight_decay", 0.1, {0, 100});
  o.grad_clip = r.number("grad_clip", 1.0, {0, 1e9});
  o.decay_embeddings = r.boolean("decay_embeddings", true);
  static constexpr const char* kStates[] = {"float32", "bfloat16"};
  o.narrow_state = std::string(r.choice("state", "float32", kStates)) == "bfloat16";
  r.reject_unknown();
}

void read_schedule(const Json& json, ScheduleConfig& s, int64_t steps, Problems& problems) {
  FieldReader r(json, "schedule", problems);
  static constexpr const char* kNames[] = {"constant", "cosine", "wsd", "linear"};
  const std::string name = r.choice("name", "cosine", kNames);
  s.kind = name == "constant" ? ScheduleKind::kConstant
           : name == "wsd"    ? ScheduleKind::kWsd
           : name == "linear" ? ScheduleKind::kLinear
                              : ScheduleKind::kCosine;
  if (r.has("warmup_steps") && r.has("warmup_ratio")) {
    problems.add("schedule.warmup_ratio", "expected warmup_steps or warmup_ratio; got both");
  }
  s.warmup_steps = r.integer("warmup_steps", 0, 0, kMany);
  const double ratio = r.number("warmup_ratio", 0, {0, 1});
  if (ratio > 0) s.warmup_steps = std::llround(ratio * static_cast<double>(steps));
  s.min_lr_ratio = r.number("min_lr_ratio", 0.1, {0, 1});
  s.decay_ratio = r.number("decay_ratio", 0.2, {0, 1});
  r.reject_unknown();
}

Json resolved_json(const RunConfig& c) {
  const auto dtype = [](Dtype d) { return std::string(dtype_name(d)); };
  static constexpr const char* kSchedules[] = {"constant", "cosine", "wsd", "linear"};
  Json j;
  j["model"] = model_config_json(c.model);
  if (!c.init_from.empty()) j["init_from"] = c.init_from;
  j["data"] = {
      {"train", c.data.train},
      {"shuffle", c.data.shuffle},
      {"document_mask", c.data.document_mask == DocumentMask::kCausal ? "causal" : "none"}};
  if (!c.data.validation.empty()) j["data"]["validation"] = c.data.validation;
  if (!c.data.tokenizer.empty()) j["data"]["tokenizer"] = c.data.tokenizer;
  const TrainConfig& t = c.train;
  j["train"] = {
      {"steps", t.steps},
      {"batch_size", t.batch_size},
      {"sequence_length", t.sequence_length},
      {"micro_batch_size", t.micro_batch_size},
      {"seed", t.seed},
      {"dtype", dtype(t.dtype)},
      {"eval_every", t.eval_every},
      {"eval_batches", t.eval_batches},
      {"save_every", t.save_every},
      {"keep", t.keep},
      {"sample_every", t.sample_every},
      {"sample_prompt", t.sample_prompt},
      {"sample_tokens", t.sample_tokens},
      {"recompute", t.recompute == Recompute::kBlock ? "block" : "none"},
      {"init", {{"std", t.init_std}, {"residual", t.init_scale_residual ? "1/sqrt(2L)" : "none"}}},
      {"dropout",
       {{"embedding", t.dropout_embedding},
        {"attention", t.dropout_attention},
        {"residual", t.dropout_residual}}},
      {"save_dtype", dtype(t.save_dtype)},
      {"tf32", t.tf32},
      {"capture", t.capture}};
  const OptimizerConfig& o = c.optimizer;
  j["optimizer"] = {{"name", "adamw"},
                    {"lr", o.lr},
                    {"betas", {o.beta1, o.beta2}},
                    {"eps", o.eps},
                    {"weight_decay", o.weight_decay},
                    {"grad_clip", o.grad_clip},
                    {"decay_embeddings", o.decay_embeddings},
                    {"state", o.narrow_state ? "bfloat16" : "float32"}};
  j["schedule"] = {{"name", kSchedules[static_cast<size_t>(c.schedule.kind)]},
                   {"warmup_steps", c.schedule.warmup_steps},
                   {"min_lr_ratio", c.schedule.min_lr_ratio},
                   {"decay_ratio", c.schedule.decay_ratio}};
  j["output"] = c.output;
  return j;
}

}  // namespace

RunConfig parse_run_config(const Json& json, const std::string& origin) {
  Problems problems(origin);
  RunConfig c;
  FieldReader r(json, "", problems);
  if (const Json* model = r.take("model")) {
    c.model = read_model(*model, problems);
  } else {
    problems.add("model", "expected a path, a preset name or an object; got nothing");
  }
  c.init_from = read_string(r, "init_from", problems);
  for (const char* key : {"convert", "uptrain"}) {
    if (r.take(key)) problems.add(key, "expected in a config for heirloom uptrain only");
  }
  static const Json kEmpty = Json::object();
  const auto section = [&](const char* key) -> const Json& {
    const Json* object = r.object(key);
    return object ? *object : kEmpty;
  };
  {
    FieldReader d(section("data"), "data", problems);
    c.data.train = read_paths(d, "train", problems);
    if (c.data.train.empty() && problems.fine({"data.train"})) {
      problems.add("data.train",
                   "expected a token shard (make one with heirloom data prepare); got nothing");
    }
    c.data.validation = read_string(d, "validation", problems);
    c.data.shuffle = d.boolean("shuffle", true);
    c.data.tokenizer = read_string(d, "tokenizer", problems);
    static constexpr const char* kMasks[] = {"none", "causal"};
    c.data.document_mask = d.choice("document_mask", "none", kMasks) == "causal"
                               ? DocumentMask::kCausal
                               : DocumentMask::kNone;
    d.reject_unknown();
  }
  read_train(section("train"), c.train, problems);
  read_optimizer(section("optimizer"), c.optimizer, problems);
  read_schedule(section("schedule"), c.schedule, c.train.steps, problems);
  if (c.optimizer.narrow_state && c.train.dtype != Dtype::kBFloat16) {
    problems.add("optimizer.state",
                 "expected float32 where train.dtype is not bfloat16; got bfloat16");
  }
  c.output = read_string(r, "output", problems);
  if (c.output.empty() && problems.fine({"output"}))
    problems.add("output", "expected a run directory; got nothing");
  r.reject_unknown();
  if (problems.fine({"model", "train.sequence_length"}) &&
      c.model.position == PositionKind::kLearned &&
      c.train.sequence_length > c.model.max_position_embeddings) {
    problems.add("train.sequence_length",
                 "expected at most the model's {} learned positions; got {}",
                 c.model.max_position_embeddings, c.train.sequence_length);
  }
  if (problems.fine({"model", "data.document_mask"}) &&
      c.data.document_mask == DocumentMask::kCausal && c.model.eos_token_ids.empty()) {
    problems.add("data.document_mask",
                 "expected a model with eos_token_id, which ends a document; got none");
  }
  problems.throw_if_any();
  c.resolved = resolved_json(c);
  return c;
}

void apply_setting(Json& json, const std::string& setting) {
  const size_t equals = setting.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw_error<ConfigError>("[--set] expected path=value; got \"{}\"", setting);
  }
  const std::string text = setting.substr(equals + 1);
  Json value;
  try {
    value = parse_json(text, "--set");
  } catch (const FormatError&) {
    value = text;
  }
  if (!json.is_object() && !json.is_null()) {
    throw_error<ConfigError>("[--set] expected a config that is an object; got {}",
                             quote_json(json));
  }
  Json* at = &json;
  std::string path = setting.substr(0, equals);
  for (size_t dot; (dot = path.find('.')) != std::string::npos; path = path.substr(dot + 1)) {
    Json& next = (*at)[path.substr(0, dot)];
    if (!next.is_object() && !next.is_null()) {
      throw_error<ConfigError>("[--set] expected {} to be a section; got {}", path.substr(0, dot),
                               quote_json(next));
    }
    at = &next;
  }
  (*at)[path] = std::move(value);
}

Json preset_run(const std::string& name) {
  static const std::string kSuffix = "-skipv1";
  const bool skip = name.ends_with(kSuffix);
  const std::string base = skip ? name.substr(0, name.size() - kSuffix.size()) : name;
  std::vector<std::string> names;
  for (const auto& [key, text] : embedded_configs()) {
    if (!key.starts_with("runs/")) continue;
    const std::string run = key.substr(5);
    if (run == base) {
      Json json = parse_json(text, key, JsonComments::kAllowed);
      if (skip) json["model"] = json["model"].get<std::string>() + kSuffix;
      return json;
    }
    names.push_back(run);
    names.push_back(run + kSuffix);
  }
  const std::string near = nearest_key(name, names);
  throw_error<ConfigError>("[--preset] expected one of {}; got \"{}\"{}", fmt::join(names, ", "),
                           name, near.empty() ? "" : "; did you mean " + near + "?");
}

double learning_rate(const ScheduleConfig& schedule, double peak, int64_t step, int64_t steps) {
  if (step < schedule.warmup_steps)
    return peak * static_cast<double>(step) / static_cast<double>(schedule.warmup_steps);
  const double low = schedule.min_lr_ratio;
  const auto share = [&](int64_t begin) {  // of [begin, steps] that has passed
    return steps > begin
               ? std::clamp(static_cast<double>(step - begin) / static_cast<double>(steps - begin),
                            0.0, 1.0)
               : 1.0;
  };
  switch (schedule.kind) {
    case ScheduleKind::kConstant:
      return peak;
    case ScheduleKind::kCosine:
      return peak * (low + (1 - low) * 0.5 *
                               (1 + std::cos(std::numbers::pi * share(schedule.warmup_steps))));
    case ScheduleKind::kLinear:
      return peak * (1 - (1 - low) * share(schedule.warmup_steps));
    case ScheduleKind::kWsd: {
      const int64_t begin = steps - std::llround(schedule.decay_ratio * static_cast<double>(steps));
      return step <= begin ? peak
                           : peak * (1 - (1 - low) * share(std::max(begin, schedule.warmup_steps)));
    }
  }
  return peak;
}

}  // namespace heirloom
