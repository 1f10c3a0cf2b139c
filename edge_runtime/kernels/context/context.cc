#include "context/context.h"

#include <cmath>
#include <cstring>

namespace hedgerow {
namespace context {
namespace {

constexpr size_t kMargin = 4;      // zeros on both sides of a row's magnitudes
constexpr int32_t kMostSeen = 40;  // a larger neighbour counts as this
constexpr uint32_t kHalf = 32768;

int32_t Log2(uint32_t v) { return 31 - __builtin_clz(v); }

uint32_t Class(uint32_t v) {
  if (v < 2) return v;
  const int32_t log = Log2(v);
  const uint32_t c = static_cast<uint32_t>(2 * log) + (v >> (log - 1) & 1);
  return c < kClasses - 1 ? c : kClasses - 1;
}

template <typename T>
T Least(T a, T b) {
  return a < b ? a : b;
}

// The two ends of a stream, for code that is the same at both: At() codes or decodes one bit.
struct Putting {
  State& state;
  bool At(Counter& counter, bool bit) {
    state.encoder.Put(bit, counter.Probability());
    counter.Learn(bit);
    return bit;
  }
  bool Even(bool bit) {
    state.encoder.Put(bit, kHalf);
    return bit;
  }
};

struct Getting {
  State& state;
  bool At(Counter& counter, bool) {
    const bool bit = state.decoder.Get(counter.Probability());
    counter.Learn(bit);
    return bit;
  }
  bool Even(bool) { return state.decoder.Get(kHalf); }
};

// Straight lines through what recorded updates led to, over the expected size.
int32_t SomeLogit(uint32_t expected) {
  const int32_t m = static_cast<int32_t>(expected);
  return m <= 4 ? -896 : m <= 10 ? -896 + 140 * (m - 4) : -56 + 118 * (m - 10);
}

int32_t MoreLogit(int32_t k, uint32_t expected) {
  const int32_t line = 118 * static_cast<int32_t>(expected) - 206 * k - 1463;
  return line < -590 ? -590 : line;
}

// What is known where the next integer comes.
struct Place {
  uint32_t row_class, expected;
  int32_t predicted, size;  // mu and min(|mu|, 3)
  int32_t sign;             // which counter
};

int32_t Sign(int32_t v) { return v > 0 ? 1 : v < 0 ? 2 : 0; }

class Walk {
 public:
  Walk(const Plane& plane, int16_t* q, void* workspace) : plane_(plane), q_(q) {
    std::memset(workspace, 0, WorkspaceBytes(plane.columns, plane.lag));
    across_ = static_cast<uint16_t*>(workspace);
    now_ = reinterpret_cast<int16_t*>(across_ + plane.columns) + kMargin + plane.lag;
    uint8_t* sizes = reinterpret_cast<uint8_t*>(now_ + plane.columns);
    for (auto& row : sizes_) {
      row = sizes + kMargin;
      sizes += plane.columns + 2 * kMargin;
    }
    for (const int32_t tap : plane.taps) predicts_ |= tap != 0;
  }

  void BeginRow(size_t i) {
    row_ = i;
    along_ = 0;
    shift_ = Least(5, 1 + Log2(static_cast<uint32_t>(i < 64 ? i + 1 : 64)));
    uint8_t* before = sizes_[0];
    sizes_[0] = sizes_[1];
    sizes_[1] = before;
  }
  void EmptyRow() {
    std::memset(now_, 0, plane_.columns * sizeof *now_);
    std::memset(sizes_[0], 0, plane_.columns);
    for (size_t j = 0; j < plane_.columns; ++j) Move(across_[j], 0, shift_);
  }
  void EndRow() { std::memcpy(q_ + row_ * plane_.columns, now_, plane_.columns * sizeof *now_); }
  Place At(size_t j) const {
    const uint8_t *a = sizes_[0] + j, *up = sizes_[1] + j;
    const size_t lag = plane_.lag;
    uint32_t near = 4u * a[-1] + 2u * a[-2] + 4u * up[0];
    if (lag == 0) {
      near += a[-3];
    } else if (j + 1 >= lag) {
      near += 3u * (a - lag)[0] + (a - lag)[1];  // one before the row is 0, too
    }
    const uint32_t across = across_[j], along = along_;
    Place place;
    place.expected = Class((8 * near + across / 4 * 3 + along) >> 3);
    place.predicted = predicts_ ? Predicted(j) : 0;
    place.size = Least(place.predicted < 0 ? -place.predicted : place.predicted, 3);
    place.row_class = plane_.row_class ? plane_.row_class[row_] : Class(along >> 2);
    place.sign = 3 * Sign(place.predicted) + Sign((now_ + j)[-1]);
    return place;
  }
  void Set(size_t j, int32_t value) {
    const int32_t size = Least(value < 0 ? -value : value, kMostSeen);
    now_[j] = static_cast<int16_t>(value);
    sizes_[0][j] = static_cast<uint8_t>(size);
    const uint32_t v = static_cast<uint32_t>(size) << 7;
    Move(along_, v, 4);
    Move(across_[j], v, shift_);
  }

 private:
  // mean += floor((v - mean) / 2^shift); stays in [0, 128 * kMostSeen].
  template <typename T>
  static void Move(T& mean, uint32_t v, int32_t shift) {
    mean = static_cast<T>(mean + ((static_cast<int32_t>(v) - static_cast<int32_t>(mean)) >> shift));
  }

  int32_t Predicted(size_t j) const {
    const int32_t* taps = plane_.taps;
    const int16_t *q = now_ + j, *far = q - plane_.lag;
    int32_t sum = taps[0] * q[-1] + taps[1] * q[-2];
    if (plane_.lag != 0) sum += taps[2] * far[0] + taps[3] * far[1] + taps[4] * far[-1];
    const int32_t mu = (sum + 4) >> 3;
    return mu < -kMostMagnitude ? -kMostMagnitude : Least(mu, kMostMagnitude);
  }

  const Plane& plane_;
  int16_t *q_, *now_;  // a row's integers stand in now_, where zeros are before them, until it ends
  uint16_t* across_;
  uint8_t* sizes_[2];  // min(|q|, 40) of this row and the one above, with zeros around
  bool predicts_ = false;
  size_t row_ = 0;
  uint32_t along_ = 0;
  int32_t shift_ = 0;
};

// The bits of e = q - mu. Returns the decoded one; what is too large comes out as kTooLarge.
constexpr int32_t kTooLarge = 1 << 20;

Counter& Some(PlaneModel& model, const Place& place) {
  return model.some[place.row_class][place.expected][place.size != 0];
}

Counter& More(PlaneModel& model, const Place& place, int32_t k) {
  return model.more[Least(k, kMores - 1)][place.expected][place.size];
}

template <typename End>
int32_t Difference(End& end, PlaneModel& model, const Place& place, int32_t e) {
  if (!end.At(Some(model, place), e != 0)) return 0;
  const bool negative = end.At(model.sign[place.sign], e < 0);
  const uint32_t size = static_cast<uint32_t>(e < 0 ? -e : e);
  const int32_t log = e != 0 ? Log2(size) : 0;
  int32_t k = 0;
  while (end.At(More(model, place, k), k < log)) {
    if (++k == 17) return kTooLarge;
  }
  uint32_t value = 1;
  for (int32_t b = k - 1; b >= 0; --b) {
    const bool bit = size >> b & 1;
    value = 2 * value + (b == k - 1 ? end.At(model.high[Least(k, 9)][place.expected], bit) : end.Even(bit));
  }
  return negative ? -static_cast<int32_t>(value) : static_cast<int32_t>(value);
}

// -log2(p / 65536), within a hundredth of a bit.
class BitTable {
 public:
  BitTable() {
    for (int i = 0; i <= 4096; ++i) bits_[i] = -std::log2(static_cast<float>(i ? i : 1) / 4096.0f);
  }
  float operator()(uint32_t p) const { return bits_[(p + 8) >> 4]; }

 private:
  float bits_[4097];
};
const BitTable kBits;

// The integer for a real value x.
class Chooser {
 public:
  Chooser(PlaneModel& model, const Place& place, const Choice& choice, float x)
      : model_(model), place_(place), choice_(choice), x_(x) {
    const float most = kMostMagnitude;
    const int32_t nearest = static_cast<int32_t>(std::lrintf(x < -most ? -most : Least(x, most)));
    const int32_t inward = nearest > 0 ? nearest - 1 : nearest < 0 ? nearest + 1 : 0;
    const int32_t mu = place.predicted;
    // Numbers of one bucket cost alike, so the nearer is better; and what is 3/2 away is not worth its bits.
    constexpr float kFar = 1.5f;
    best_ = nearest;
    const float to_zero = std::fabs(x), to_mu = std::fabs(x - static_cast<float>(mu));
    if (Bucket(nearest - mu) == Bucket(inward - mu) && to_zero > kFar && to_mu > kFar) return;
    const uint32_t some = Some(model, place).Probability(), minus = model.sign[place.sign].Probability();
    none_ = kBits(65536 - some);
    some_[0] = kBits(some) + kBits(65536 - minus);
    some_[1] = kBits(some) + kBits(minus);
    Try(nearest);
    if (inward != nearest) Try(inward);
    if (inward != 0 && to_zero < kFar) Try(0);
    if (mu != nearest && mu != inward && mu != 0 && to_mu < kFar) Try(mu);
  }
  int32_t best() const { return best_; }

 private:
  static int32_t Bucket(int32_t e) {
    return e == 0 ? -1 : e < 0 ? 32 + Log2(static_cast<uint32_t>(-e)) : Log2(static_cast<uint32_t>(e));
  }

  void Try(int32_t q) {
    const int32_t size = q < 0 ? -q : q;
    const float level = size == 0 ? 0 : size == 1 ? choice_.d1 : static_cast<float>(size - 1) + choice_.d2;
    const float error = x_ - (q < 0 ? -level : level);
    const float cost = error * error + choice_.lambda * Cost(q - place_.predicted);
    if (cost < least_) {
      least_ = cost;
      best_ = q;
    }
  }
  float Cost(int32_t e) const {
    if (e == 0) return none_;
    const int32_t log = Log2(static_cast<uint32_t>(e < 0 ? -e : e));
    float bits = some_[e < 0] + static_cast<float>(log);
    for (int32_t k = 0; k <= log; ++k) {
      const uint32_t p = More(model_, place_, k).Probability();
      bits += kBits(k < log ? p : 65536 - p);
    }
    return bits;
  }

  PlaneModel& model_;
  const Place& place_;
  const Choice& choice_;
  float x_, none_ = 0, some_[2] = {}, least_ = INFINITY;
  int32_t best_;
};

// Whether coding this row's larger values can be worth more than leaving them out.
bool WorthCoding(const float* x, size_t n, float lambda) {
  constexpr float kBitsOfOne = 6;
  for (size_t j = 0; j < n; ++j) {
    const float size = std::fabs(x[j]), error = size - std::rint(size);
    if (size * size - error * error > lambda * kBitsOfOne) return true;
  }
  return false;
}

template <typename End, typename Pick>
bool CodePlane(End& end, PlaneModel& model, const Plane& plane, int16_t* q, void* workspace, Pick pick) {
  Walk walk(plane, q, workspace);
  uint32_t before = 0;  // whether the last two rows held something
  for (size_t i = 0; i < plane.rows; ++i) {
    walk.BeginRow(i);
    const bool some = end.At(model.row[before], pick.Row(i));
    before = (before << 1 | some) & 3;
    if (!some) walk.EmptyRow();
    for (size_t j = 0; some && j < plane.columns; ++j) {
      const Place place = walk.At(j);
      const int32_t value = place.predicted + Difference(end, model, place, pick.At(i, j, place));
      if (value < -kMostMagnitude || value > kMostMagnitude) return false;
      walk.Set(j, value);
    }
    walk.EndRow();
  }
  return true;
}

}  // namespace

PlaneModel::PlaneModel() {
  for (uint32_t m = 0; m < kClasses; ++m) {
    const int32_t logit = SomeLogit(m);
    for (auto& row : some) {
      row[m][0] = Counter(logit);
      row[m][1] = Counter(logit < 77 ? 77 : logit);
    }
    for (int32_t k = 0; k < kMores; ++k) {
      for (Counter& counter : more[k][m]) counter = Counter(MoreLogit(k, m));
    }
  }
  for (auto& row : high) {
    for (Counter& counter : row) counter = Counter(-205);
  }
}

size_t WorkspaceBytes(size_t columns, size_t lag) {
  return 2 * columns + 2 * (kMargin + lag + columns) + 2 * (columns + 2 * kMargin);
}

void PutNumber(State& state, int slot, uint32_t value) {
  Putting end{state};
  const int32_t log = Log2(value + 1);
  for (int32_t k = 0; k <= log; ++k) end.At(state.numbers[slot][k], k < log);
  for (int32_t b = log - 1; b >= 0; --b) end.At(state.numbers[slot][32 + b], (value + 1) >> b & 1);
}

bool GetNumber(State& state, int slot, uint32_t most, uint32_t* value) {
  Getting end{state};
  int32_t log = 0;
  while (end.At(state.numbers[slot][log], false)) {
    if (++log > 31) return false;
  }
  uint32_t v = 1;
  for (int32_t b = log - 1; b >= 0; --b) v = 2 * v + end.At(state.numbers[slot][32 + b], false);
  *value = v - 1;
  return *value <= most;
}

void PutPlane(State& state, int kind, const Plane& plane, const Choice& choice, const float* x, int16_t* q,
              void* workspace, Seen* seen) {
  PlaneModel& model = state.planes[kind];
  struct Pick {
    PlaneModel& model;
    const Plane& plane;
    const Choice& choice;
    const float* x;
    Seen* seen;
    bool Row(size_t i) { return WorthCoding(x + i * plane.columns, plane.columns, choice.lambda); }
    int32_t At(size_t i, size_t j, const Place& place) {
      const float v = x[i * plane.columns + j], size = std::fabs(v);
      if (size < 0.5f && place.predicted == 0) return 0;
      const int32_t q = Chooser(model, place, choice, v).best(), n = q < 0 ? -q : q;
      const double own = (q < 0) == (v < 0) ? size : -size;
      if (n == 1) {
        seen->ones += 1;
        seen->ones_sum += own;
      } else if (n > 1) {
        seen->more += 1;
        seen->more_sum += own - (n - 1);
      }
      return q - place.predicted;
    }
  };
  Putting end{state};
  CodePlane(end, model, plane, q, workspace, Pick{model, plane, choice, x, seen});
}

bool GetPlane(State& state, int kind, const Plane& plane, int16_t* q, void* workspace) {
  struct Pick {
    bool Row(size_t) { return false; }
    int32_t At(size_t, size_t, const Place&) { return 0; }
  };
  Getting end{state};
  return CodePlane(end, state.planes[kind], plane, q, workspace, Pick{});
}

void DecodeLevels(size_t n, const int16_t* q, const Levels& levels, float* x) {
  for (size_t i = 0; i < n; ++i) {
    const int32_t v = q[i], size = v < 0 ? -v : v;
    const int32_t level = size == 0 ? 0 : size == 1 ? levels.d1 : kLevelUnit * (size - 1) + levels.d2;
    x[i] = static_cast<float>(v < 0 ? -level : level) * levels.scale;
  }
}

}  // namespace context
}  // namespace hedgerow
