// The native core behind stdin and stdout, so that tests on one machine drive it on another, emulated or real: nothing
// but this program and the library has to be there. remote_core.py is the other side.
//
// A request is six int64 (kind, a, b, c, d, nbytes) and nbytes of payload; its answer three (x, y, nbytes) and payload.
// Both in the byte order of the machines, which is the same.
//
//   kind       a        b            c      d        payload      x                y        payload
//   0 isa      index                                              0, -1 past them           name
//   1 select                                         name         0, -1 unknown
//   2 code                                           name         the op's code
//   3 create   count    arena_bytes                  ops          session, or -1   bad op   why
//   4 run      session  first        count  threads  the arena    status           bad op   the arena
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "c_api.h"

namespace {

// Exits where the other side has gone: nothing is left to do then.
void ReadAll(void* to, size_t nbytes) {
  auto* p = static_cast<uint8_t*>(to);
  while (nbytes > 0) {
    const ssize_t n = read(STDIN_FILENO, p, nbytes);
    if (n <= 0) _exit(n == 0 ? 0 : 1);
    p += n;
    nbytes -= static_cast<size_t>(n);
  }
}

void WriteAll(const void* from, size_t nbytes) {
  const auto* p = static_cast<const uint8_t*>(from);
  while (nbytes > 0) {
    const ssize_t n = write(STDOUT_FILENO, p, nbytes);
    if (n <= 0) _exit(1);
    p += n;
    nbytes -= static_cast<size_t>(n);
  }
}

// Bytes on a 64-byte boundary, with a page that nobody may touch right behind them (but for what rounds them up to 64).
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t nbytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t rounded = (nbytes + page) / page * page;
    mapped_ = rounded + page;
    void* pages = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) _exit(1);
    base_ = static_cast<uint8_t*>(pages);
    mprotect(base_ + rounded, page, PROT_NONE);
    start_ = base_ + rounded - (nbytes + 63) / 64 * 64;
  }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  ~GuardedBytes() { munmap(base_, mapped_); }
  uint8_t* start() const { return start_; }

 private:
  uint8_t *base_, *start_;
  size_t mapped_;
};

void Answer(int64_t x, int64_t y, const void* payload = nullptr, size_t nbytes = 0) {
  const int64_t head[3] = {x, y, static_cast<int64_t>(nbytes)};
  WriteAll(head, sizeof head);
  WriteAll(payload, nbytes);
}

void AnswerText(int64_t x, int64_t y, const char* text) { Answer(x, y, text, text == nullptr ? 0 : std::strlen(text)); }

std::string Name(const uint8_t* data, size_t nbytes) { return {reinterpret_cast<const char*>(data), nbytes}; }

void Serve() {
  std::vector<void*> sessions;
  std::map<int64_t, void*> teams;  // by how many threads they have
  for (;;) {
    int64_t head[6];
    ReadAll(head, sizeof head);
    const auto [kind, a, b, c, d, length] = head;
    const auto nbytes = static_cast<size_t>(length);
    const GuardedBytes payload(nbytes);
    uint8_t* data = payload.start();
    ReadAll(data, nbytes);
    int64_t bad = -1;
    const char* why = nullptr;
    switch (kind) {
      case 0: {
        const char* name = hr_isa_name(static_cast<int32_t>(a));
        AnswerText(name == nullptr ? -1 : 0, 0, name);
        break;
      }
      case 1:
        Answer(hr_select_isa(Name(data, nbytes).c_str()), 0);
        break;
      case 2:
        Answer(hr_op_code(Name(data, nbytes).c_str()), 0);
        break;
      case 3: {
        void* session = hr_session_create(data, a, b, &bad, &why);
        if (session != nullptr) sessions.push_back(session);
        AnswerText(session == nullptr ? -1 : static_cast<int64_t>(sessions.size()) - 1, bad, why);
        break;
      }
      case 4: {
        if (d > 1 && teams[d] == nullptr) teams[d] = hr_team_create(static_cast<int32_t>(d));
        void* team = d > 1 ? teams[d] : nullptr;
        const int32_t status = hr_session_run(sessions[static_cast<size_t>(a)], team, data, b, c, &bad);
        Answer(status, bad, data, nbytes);
        break;
      }
      default:
        _exit(2);
    }
  }
}

}  // namespace

int main() { Serve(); }
