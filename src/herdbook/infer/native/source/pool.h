// A pool of threads that stays, the barrier between the parts of a step, and counters that deal out work.
#pragma once
#include <stdint.h>

struct Barrier {
  alignas(64) int arrived;
  alignas(64) int turn;  // each round of the barrier is another turn, so that it needs no resetting
  int threads;
};

struct alignas(64) Counter {
  int next;
};

extern "C" {
// Run `work(what, thread)` for thread 0 (the caller) to threads - 1, and return when all are done. One call at a time: a
// second one waits. Survives fork(): the child starts threads of its own.
void hb_pool_run(int threads, void (*work)(void*, int), void* what);
// Wait until all threads have come here. Spins for some microseconds, then lets others have the core, then sleeps.
void hb_wait(Barrier* barrier);
}
