#include "exec/crew.h"

#include <condition_variable>
#include <mutex>
#include <thread>

#include <pthread.h>

namespace simgpu {

struct Crew::State {
  std::mutex mutex;
  std::condition_variable wake, idle;
  const std::function<void()>* job = nullptr;
  int wanted = 0, busy = 0, threads = 0;

  void serve() {
    std::unique_lock lock(mutex);
    for (;;) {
      wake.wait(lock, [&] { return wanted > 0; });
      --wanted;
      ++busy;
      lock.unlock();
      (*job)();
      lock.lock();
      if (--busy == 0) idle.notify_one();
    }
  }
};

// Never destroyed: threads may sleep in it while the process ends.
Crew& Crew::get() {
  static auto* const crew = new Crew;
  return *crew;
}

// A forked process has none of its parent's threads: it starts its own.
Crew::Crew() : state_(new State) {
  pthread_atfork(nullptr, nullptr, [] { get().state_ = new State; });
}

void Crew::summon(int helpers, const std::function<void()>& job) {
  State& s = *state_;
  const std::lock_guard lock(s.mutex);
  s.job = &job;
  s.wanted = helpers;
  for (; s.threads < helpers; ++s.threads) std::thread([&s] { s.serve(); }).detach();
  for (int i = 0; i < helpers; ++i) s.wake.notify_one();
}

void Crew::dismiss() {
  State& s = *state_;
  std::unique_lock lock(s.mutex);
  s.wanted = 0;
  s.idle.wait(lock, [&] { return s.busy == 0; });
  s.job = nullptr;
}

}  // namespace simgpu
