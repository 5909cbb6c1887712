#pragma once

namespace ergon::trainer {

// While one lives, SIGINT (Ctrl-C) and SIGTERM only set a flag; a second one of them ends the process as
// usual.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  bool requested() const;
};

}  // namespace ergon::trainer
