// Work shared by a team in parts large enough to be worth waking somebody for.
#ifndef HEDGEROW_PROGRAM_PARTS_H_
#define HEDGEROW_PROGRAM_PARTS_H_

#include <cstddef>

#include "program/call.h"

namespace hedgerow {
namespace {

// Multiplications of a part: some 30 us on a fast core.
constexpr double kPartWork = 1 << 20;

// f(first, last) for ranges that together are [0, units), each unit being `work` multiplications, with at least `least`
// units in each where there are so many. Ranges depend on the number of threads, so what f writes for a unit may not
// depend on the range that it is in.
template <typename F>
void ForParts(const Call& call, ptrdiff_t units, double work, ptrdiff_t least, F f) {
  ptrdiff_t parts = 1;
  if (call.threads() > 1) {
    const double most = static_cast<double>(units) * work / kPartWork;
    parts = 4 * call.threads();  // so that a thread that is late holds up little
    if (most < static_cast<double>(parts)) parts = most < 1 ? 1 : static_cast<ptrdiff_t>(most);
    if (units / least < parts) parts = units < least ? 1 : units / least;
  }
  if (parts == 1) return f(0, units);
  call.For(parts, [&](ptrdiff_t part) {
    const ptrdiff_t each = units / parts, more = units % parts;
    const ptrdiff_t first = part * each + (part < more ? part : more);
    f(first, first + each + (part < more ? 1 : 0));
  });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_PROGRAM_PARTS_H_
