// The threads that share the ops of one session's runs: started once, asleep between runs.
#ifndef HEDGEROW_THREADS_TEAM_H_
#define HEDGEROW_THREADS_TEAM_H_

#include <cstddef>
#include <cstdint>

namespace hedgerow {

struct Team;

constexpr int kMostThreads = 64;

// A team of `threads`, the one that calls included: 1 to kMostThreads, otherwise nullptr. Where the system gives fewer,
// the team is smaller. Allocates, and nothing after it does.
Team* CreateTeam(int threads);
// Nobody may be running on it. nullptr is fine.
void FreeTeam(Team* team);

// Threads that Share uses; 1 for nullptr.
int ThreadsOf(const Team* team);

// task(context, i) once for every i in [0, count), on any of the team's threads and in any order; returns when all are
// done, and what they wrote is then seen by the caller, who does them all alone where `team` is nullptr, or is at work
// for another thread, or for a task that calls this.
void Share(Team* team, ptrdiff_t count, void (*task)(void* context, ptrdiff_t i), void* context);

// Between these two, threads that find nothing to do watch for work for a while before they sleep. BeginRun returns the
// team, or nullptr where there is nobody to share with: a team of one, or one whose threads a fork has left behind.
Team* BeginRun(Team* team);
void EndRun(Team* team);

}  // namespace hedgerow

#endif  // HEDGEROW_THREADS_TEAM_H_
