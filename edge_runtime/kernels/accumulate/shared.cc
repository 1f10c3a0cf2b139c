#include "accumulate/shared.h"

#include <atomic>

namespace hedgerow {
namespace {

// Values of one task: to start one costs little beside its work.
constexpr size_t kChunk = 32768;

struct Job {
  const AccumulateKernels& kernels;
  size_t n;
  const float* x;
  double weight;
  double* acc;
  std::atomic<int32_t> finite{1};

  static void Check(void* context, ptrdiff_t i) {
    Job& job = *static_cast<Job*>(context);
    const size_t first = static_cast<size_t>(i) * kChunk;
    if (!job.kernels.all_finite(job.Length(first), job.x + first)) job.finite.store(0, std::memory_order_relaxed);
  }

  static void Add(void* context, ptrdiff_t i) {
    const Job& job = *static_cast<const Job*>(context);
    const size_t first = static_cast<size_t>(i) * kChunk;
    job.kernels.accumulate(job.Length(first), job.x + first, job.weight, job.acc + first);
  }

  size_t Length(size_t first) const { return n - first < kChunk ? n - first : kChunk; }

  void Run(Team* team, void (*task)(void*, ptrdiff_t)) {
    Team* running = BeginRun(team);
    Share(running, static_cast<ptrdiff_t>((n + kChunk - 1) / kChunk), task, this);
    EndRun(running);
  }
};

}  // namespace

int32_t AllFiniteShared(const AccumulateKernels& kernels, Team* team, size_t n, const float* x) {
  Job job{kernels, n, x, 0, nullptr};
  job.Run(team, Job::Check);
  return job.finite.load(std::memory_order_relaxed);
}

void AccumulateShared(const AccumulateKernels& kernels, Team* team, size_t n, const float* x, double weight,
                      double* acc) {
  Job job{kernels, n, x, weight, acc};
  job.Run(team, Job::Add);
}

}  // namespace hedgerow
