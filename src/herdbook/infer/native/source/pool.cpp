#include "pool.h"

#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// A barrier is passed every few microseconds, so spinning is right while all threads have a core of their own. Where one has
// not, the others must give theirs away soon: yielding helps when the missing thread waits for this very core, and sleeping
// when somebody else's work is on it.
constexpr int SPINS = 3000, YIELDS = 200, IDLE_SPINS = 20000;
constexpr long NAP_NANOSECONDS = 20000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  __asm__ __volatile__("" ::: "memory");
#endif
}

class Pool {
 public:
  void run(int threads, void (*work)(void*, int), void* what) {
    std::lock_guard<std::mutex> one_at_a_time(calls_);
    while (static_cast<int>(workers_.size()) < threads - 1) {
      int number = static_cast<int>(workers_.size()) + 1;
      workers_.emplace_back([this, number, seen = round_] { serve(number, seen); });
    }
    work_ = work, what_ = what, threads_ = threads;
    __atomic_store_n(&running_, static_cast<int>(workers_.size()), __ATOMIC_RELAXED);
    {
      std::lock_guard<std::mutex> guard(sleep_);
      __atomic_fetch_add(&round_, 1, __ATOMIC_RELEASE);
    }
    if (__atomic_load_n(&sleepers_, __ATOMIC_ACQUIRE)) wake_.notify_all();
    work(what, 0);
    for (int spins = 0; __atomic_load_n(&running_, __ATOMIC_ACQUIRE); spins++) spins < SPINS ? relax() : void(sched_yield());
  }

 private:
  void serve(int number, int seen) {
    for (;; seen++) {
      for (int spins = 0; spins < IDLE_SPINS && __atomic_load_n(&round_, __ATOMIC_ACQUIRE) == seen; spins++) relax();
      if (__atomic_load_n(&round_, __ATOMIC_ACQUIRE) == seen) {
        std::unique_lock<std::mutex> guard(sleep_);
        __atomic_fetch_add(&sleepers_, 1, __ATOMIC_ACQ_REL);
        wake_.wait(guard, [&] { return __atomic_load_n(&round_, __ATOMIC_ACQUIRE) != seen; });
        __atomic_fetch_sub(&sleepers_, 1, __ATOMIC_ACQ_REL);
      }
      if (number < threads_) work_(what_, number);
      __atomic_fetch_sub(&running_, 1, __ATOMIC_ACQ_REL);
    }
  }

  std::mutex calls_, sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;  // they run until the process ends
  void (*work_)(void*, int) = nullptr;
  void* what_ = nullptr;
  int threads_ = 0, running_ = 0, round_ = 0, sleepers_ = 0;
};

}  // namespace

extern "C" void hb_pool_run(int threads, void (*work)(void*, int), void* what) {
  if (threads == 1) return work(what, 0);
  // Never destroyed: its threads outlive main(), and after fork() the parent's are no longer there to be joined.
  static std::mutex guard;
  static Pool* pool = nullptr;
  static pid_t owner = 0;
  Pool* mine;
  {
    std::lock_guard<std::mutex> one(guard);
    if (owner != getpid()) pool = new Pool, owner = getpid();
    mine = pool;
  }
  mine->run(threads, work, what);
}

extern "C" void hb_wait(Barrier* barrier) {
  if (barrier->threads == 1) return;
  int turn = __atomic_load_n(&barrier->turn, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == barrier->threads) {
    __atomic_store_n(&barrier->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&barrier->turn, turn + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&barrier->turn, __ATOMIC_ACQUIRE) == turn; spins++) {
    if (spins < SPINS) {
      relax();
    } else if (spins < SPINS + YIELDS) {
      sched_yield();
    } else {
      timespec nap = {0, NAP_NANOSECONDS};
      nanosleep(&nap, nullptr);
    }
  }
}
