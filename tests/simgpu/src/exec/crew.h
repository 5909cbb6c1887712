#pragma once
// The host threads that help with launches. They are started once and sleep in between.
#include <functional>

namespace simgpu {

class Crew {
 public:
  static Crew& get();
  // Wakes up to `helpers` threads, each of which calls job() once if it gets there before dismiss().
  void summon(int helpers, const std::function<void()>& job);
  // No thread begins the job any more; returns when those that did have finished.
  void dismiss();

 private:
  Crew();
  struct State;
  State* state_;
};

}  // namespace simgpu
