// The launchers of csrc/cuda, compiled for the host, behind a C interface.
#include "cuda_runtime_api.h"
// After the stand-in for CUDA:
#include "adam.cu"
#include "combine.cu"
#include "gram.cu"
#include "mix.cu"
#include "norm.cu"
#include "sgd.cu"

using namespace ratfast;

namespace {

std::vector<DType> dtypes(const unsigned char* codes, std::size_t count) {
  std::vector<DType> types;
  for (std::size_t i = 0; i < count; ++i) types.push_back(static_cast<DType>(codes[i]));
  return types;
}

}  // namespace

extern "C" {

int launch_count() { return launches; }
int saw_misaligned() { return misaligned; }
int passes(int outputs, int sources) { return cuda::outputs_per_pass(outputs, sources); }

// Pointers and types are tensor-major: of each tensor all models.
int mix(int tensors, const long long* numels, int outputs, void** output_pointers,
        const unsigned char* output_codes, int sources, void** source_pointers,
        const unsigned char* source_codes, const double* weights) {
  const auto output_types = dtypes(output_codes, static_cast<std::size_t>(tensors) * outputs);
  const auto source_types = dtypes(source_codes, static_cast<std::size_t>(tensors) * sources);
  std::vector<MixSegment> segments;
  for (int t = 0; t < tensors; ++t)
    segments.push_back({numels[t], source_pointers + t * sources, source_types.data() + t * sources,
                        output_pointers + t * outputs, output_types.data() + t * outputs});
  return cuda::mix(segments, outputs, sources, weights, nullptr);
}

// Pointers and types tensor-major; result (tensors, sources, sources).
int gram(int tensors, const long long* numels, int sources, void** pointers, const unsigned char* codes,
         double* result) {
  const auto types = dtypes(codes, static_cast<std::size_t>(tensors) * sources);
  std::vector<GramSegment> segments;
  for (int t = 0; t < tensors; ++t)
    segments.push_back({numels[t], pointers + t * sources, types.data() + t * sources});
  // Memory that a sum forgets to write is not to pass for zero.
  std::vector<double> workspace(cuda::gram_workspace(segments, sources), NAN);
  return cuda::gram(segments, sources, workspace.data(), result, nullptr);
}

// Pointers and types tensor-major; bases, thresholds, densities and streams may be null.
int combine(int tensors, const long long* numels, void** outputs, const unsigned char* output_codes,
            int models, int lists, void** sources, const unsigned char* source_codes, void** bases,
            const unsigned char* base_codes, int kind, const double* weights, const float* thresholds,
            const double* densities, const unsigned long long* keys, const std::int64_t* streams,
            unsigned long long seed, double scale, int normalize) {
  const auto types = dtypes(source_codes, static_cast<std::size_t>(tensors) * lists);
  std::vector<CombineSegment> segments;
  for (int t = 0; t < tensors; ++t)
    segments.push_back({numels[t], sources + t * lists, types.data() + t * lists,
                        bases == nullptr ? nullptr : bases[t],
                        bases == nullptr ? DType::f32 : static_cast<DType>(base_codes[t]), outputs[t],
                        static_cast<DType>(output_codes[t]),
                        thresholds == nullptr ? nullptr : thresholds + t * models, keys[t], 0});
  return cuda::combine(
      segments,
      {static_cast<CombineKind>(kind), models, weights, densities, streams, seed, scale, normalize != 0},
      nullptr);
}
}

namespace {

cuda::DeviceNumber number(const double* value) { return {value, DType::f64}; }

// Per tensor seven pointers (parameter, gradient, three states, average, copy) and five types (state once).
std::vector<StepSegment> step_segments_of(int tensors, const long long* numels, void** pointers,
                                          const unsigned char* codes) {
  const auto types = dtypes(codes, static_cast<std::size_t>(tensors) * 5);
  std::vector<StepSegment> segments;
  for (int t = 0; t < tensors; ++t) {
    void** p = pointers + t * 7;
    const DType* type = types.data() + t * 5;
    segments.push_back(
        {numels[t], p[0], p[1], {p[2], p[3], p[4]}, p[5], p[6], type[0], type[1], type[2], type[3], type[4]});
  }
  return segments;
}

}  // namespace

extern "C" {

// Numbers may be null; those at hand are "in device memory". `steps` are there too if `there`.
int adam(int tensors, const long long* numels, void** pointers, const unsigned char* codes, float* steps,
         int there, double* workspace, const double* lr, const double* multiplier, const double* found_inf,
         const double* average_weight, int zero_grads, double beta1, double beta2, double weight_decay,
         double eps, int decoupled, int amsgrad, int maximize) {
  return cuda::adam(step_segments_of(tensors, numels, pointers, codes),
                    {0.0, 1.0, beta1, beta2, weight_decay, eps, decoupled != 0, amsgrad != 0, maximize != 0},
                    {0.0, zero_grads != 0},
                    {number(lr), number(multiplier), number(found_inf), number(average_weight),
                     there ? steps : nullptr, workspace},
                    steps, nullptr);
}

int sgd(int tensors, const long long* numels, void** pointers, const unsigned char* codes, float* steps,
        int there, double* workspace, double lr, const double* multiplier, const double* found_inf,
        double average_weight, int zero_grads, double momentum, double dampening, double weight_decay,
        int nesterov, int maximize) {
  return cuda::sgd(step_segments_of(tensors, numels, pointers, codes),
                   {lr, 1.0, momentum, dampening, weight_decay, nesterov != 0, maximize != 0},
                   {average_weight, zero_grads != 0},
                   {number(nullptr), number(multiplier), number(found_inf), number(nullptr),
                    there ? steps : nullptr, workspace},
                   steps, nullptr);
}

int norm(int tensors, const long long* numels, void** pointers, const unsigned char* codes, double* workspace,
         const double* grad_scale, double max_norm, double* norm, double* multiplier, float* found_inf) {
  const auto types = dtypes(codes, static_cast<std::size_t>(tensors));
  std::vector<NormSegment> segments;
  for (int t = 0; t < tensors; ++t) segments.push_back({numels[t], pointers[t], types[t]});
  return cuda::norm(segments, {number(grad_scale), norm, multiplier, found_inf, workspace}, max_norm,
                    nullptr);
}

int workspace_size() { return cuda::kWorkspace; }
}
