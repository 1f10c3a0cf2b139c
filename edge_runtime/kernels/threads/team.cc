#include "threads/team.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <new>

namespace hedgerow {
namespace {

// What a task may keep on its stack is a part of this; only touched pages take memory.
constexpr size_t kStackBytes = 1 << 20;
// How long a thread watches for work within a run: longer than most stretches that one thread does alone, and about
// what waking it would cost.
constexpr int64_t kWatchNanoseconds = 100'000;

// The state word: how many workers are inside the job, whether more may join, and the job's number.
constexpr uint64_t kInside = 0xffff, kOpen = 1 << 16, kNextJob = 1 << 17;
uint64_t JobOf(uint64_t state) { return state / kNextJob; }

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__ARM_ARCH_7A__)
  asm volatile("yield");
#endif
}

int64_t Nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

struct Team {
  alignas(64) std::atomic<uint64_t> state{0};
  alignas(64) std::atomic<ptrdiff_t> next{0};
  // The open job; written while no worker is inside.
  ptrdiff_t count = 0;
  void (*task)(void*, ptrdiff_t) = nullptr;
  void* context = nullptr;

  alignas(64) std::atomic<bool> busy{false};
  std::atomic<bool> running{false}, stop{false};
  std::atomic<int> asleep{0};
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  pid_t owner = getpid();
  int workers = 0;
  pthread_t threads[kMostThreads];

  void DoTasks() {
    for (ptrdiff_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
  }

  // True inside a job later than `last`, which becomes its number.
  bool Join(uint64_t& last) {
    uint64_t seen = state.load(std::memory_order_acquire);
    while ((seen & kOpen) && JobOf(seen) != last) {
      if (!state.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
      last = JobOf(seen);
      return true;
    }
    return false;
  }

  void Sleep(uint64_t last) {
    pthread_mutex_lock(&mutex);
    // Sequentially consistent with Share's pair: either we see its job, or it sees us asleep.
    asleep.fetch_add(1);
    while (!stop.load()) {
      const uint64_t seen = state.load();
      if ((seen & kOpen) && JobOf(seen) != last) break;
      pthread_cond_wait(&wake, &mutex);
    }
    asleep.fetch_sub(1);
    pthread_mutex_unlock(&mutex);
  }

  // Returns when there is a job or the team ends.
  void Await(uint64_t last) {
    const int64_t until = Nanoseconds() + kWatchNanoseconds;
    while (running.load(std::memory_order_relaxed)) {
      for (int i = 0; i < 64; ++i) {
        const uint64_t seen = state.load(std::memory_order_relaxed);
        if ((seen & kOpen) && JobOf(seen) != last) return;
        Pause();
      }
      if (Nanoseconds() > until) break;
    }
    Sleep(last);
  }

  void Work() {
    for (uint64_t last = 0; !stop.load(std::memory_order_relaxed);) {
      if (Join(last)) {
        DoTasks();
        state.fetch_sub(1, std::memory_order_release);
      } else {
        Await(last);
      }
    }
  }

  static void* Start(void* team) {
    static_cast<Team*>(team)->Work();
    return nullptr;
  }
};

Team* CreateTeam(int threads) {
  if (threads < 1 || threads > kMostThreads) return nullptr;
  Team* team = new (std::nothrow) Team;
  if (team == nullptr) return nullptr;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStackBytes);
  // Threads inherit the mask: a signal is for the process that uses the library, which may wait for it elsewhere.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  while (team->workers + 1 < threads &&
         pthread_create(&team->threads[team->workers], &attributes, Team::Start, team) == 0) {
    ++team->workers;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  return team;
}

void FreeTeam(Team* team) {
  if (team == nullptr) return;
  if (team->owner == getpid()) {  // a fork's child has the memory, but not the threads
    pthread_mutex_lock(&team->mutex);
    team->stop.store(true);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->mutex);
    for (int i = 0; i < team->workers; ++i) pthread_join(team->threads[i], nullptr);
  }
  delete team;
}

int ThreadsOf(const Team* team) { return team == nullptr ? 1 : team->workers + 1; }

void Share(Team* team, ptrdiff_t count, void (*task)(void*, ptrdiff_t), void* context) {
  if (count <= 1 || ThreadsOf(team) == 1 || team->busy.exchange(true)) {
    for (ptrdiff_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  team->count = count;
  team->task = task;
  team->context = context;
  team->next.store(0, std::memory_order_relaxed);
  const uint64_t closed = team->state.load(std::memory_order_relaxed);
  team->state.store(closed + kNextJob + kOpen);
  if (team->asleep.load() > 0) {
    pthread_mutex_lock(&team->mutex);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->mutex);
  }
  team->DoTasks();
  team->state.fetch_and(~kOpen, std::memory_order_relaxed);
  // Only those inside are waited for: one that the system has put aside before it joined finds the job closed.
  for (int tries = 0; (team->state.load(std::memory_order_acquire) & kInside) != 0; ++tries) {
    if (tries < 4096) {
      Pause();
    } else {
      sched_yield();
    }
  }
  team->busy.store(false, std::memory_order_release);
}

Team* BeginRun(Team* team) {
  if (ThreadsOf(team) == 1 || team->owner != getpid()) return nullptr;
  team->running.store(true, std::memory_order_relaxed);
  return team;
}

void EndRun(Team* team) {
  if (team != nullptr) team->running.store(false, std::memory_order_relaxed);
}

}  // namespace hedgerow
