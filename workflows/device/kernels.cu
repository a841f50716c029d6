// CUDA kernels for work that array code would spread over hundreds of launches.
//
// Each kernel is equal, value by value, to array code that NumPy runs. They use no header and no shared memory, and
// their grid-stride loops also run as one thread, so the tests compile this file for the CPU and compare
// (benchmark/cost_model/host_kernels.py, tests/host_kernels.py).

typedef long long i64;
typedef unsigned long long u64;

#define ELEMENTS(index, number)                                                                   \
  for (i64 index = blockIdx.x * (i64)blockDim.x + threadIdx.x, stride = gridDim.x * (i64)blockDim.x; \
       index < (number); index += stride)

// --- Counter-based random numbers: workflows/sampling/counter_rng.py ---

static const u64 GOLDEN = 0x9E3779B97F4A7C15ULL;

static __device__ u64 mix(u64 x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

static __device__ u64 key_of(u64 seed, u64 id) { return mix(mix(id * GOLDEN) ^ seed); }

static __device__ u64 draw(u64 key, u64 number) { return mix(key + (number + 1) * GOLDEN); }

static __device__ i64 below(u64 bits, i64 bound) { return (i64)__umul64hi(bits, (u64)bound); }

// --- The line of candidate items without some that are taken: workflows/sampling/candidates.py ---

// The taken positions of one owner, ascending.
template <typename Position> struct TakenAs {
  const Position *positions;
  const i64 *weights;  // cumulative weight before each position, and past the last one; null: every weight is 1
  i64 number;
  i64 free;  // index of one that is not taken after all; `number` or more: none
};
using Taken = TakenAs<i64>;

static __device__ i64 cdf_at(const i64 *cdf, i64 position) { return cdf ? cdf[position] : position; }

// Number of taken positions below `position`.
template <typename Position> static __device__ i64 count_below(const TakenAs<Position> &taken, i64 position) {
  i64 low = 0, high = taken.number;
  while (low < high) {
    i64 middle = (low + high) / 2;
    if (taken.positions[middle] < position) low = middle + 1;
    else high = middle;
  }
  return low;
}

static __device__ i64 weight_below(const Taken &taken, i64 position) {
  i64 number = count_below(taken, position);
  i64 weight = taken.weights ? taken.weights[number] - taken.weights[0] : number;
  if (number <= taken.free) return weight;
  return weight - (taken.weights ? taken.weights[taken.free + 1] - taken.weights[taken.free] : 1);
}

static __device__ bool is_taken(const Taken &taken, i64 position) {
  i64 place = count_below(taken, position);
  return place < taken.number && taken.positions[place] == position && place != taken.free;
}

// Weight of the chosen positions (ascending) below `position`.
static __device__ i64 chosen_below(const i64 *chosen, i64 n_chosen, const i64 *cdf, i64 position) {
  i64 weight = 0;
  for (i64 i = 0; i < n_chosen && chosen[i] < position; i++) weight += cdf_at(cdf, chosen[i] + 1) - cdf_at(cdf, chosen[i]);
  return weight;
}

// The position that contains a point of the line below `limit` that remains without taken and chosen positions.
static __device__ i64 position_of(i64 point, const Taken &taken, const i64 *chosen, i64 n_chosen, const i64 *cdf,
                                  i64 limit) {
  i64 low = 0, high = limit - 1;
  while (low < high) {
    i64 middle = (low + high) / 2;
    i64 remaining = cdf_at(cdf, middle + 1) - weight_below(taken, middle + 1) -
                    chosen_below(chosen, n_chosen, cdf, middle + 1);
    if (remaining > point) high = middle;
    else low = middle + 1;
  }
  return low;
}

// --- Test negatives: workflows/sampling/negatives.py, `series_negatives` ---

static __device__ void sift(i64 *values, i64 root, i64 number) {
  for (i64 child = 2 * root + 1; child < number; root = child, child = 2 * root + 1) {
    if (child + 1 < number && values[child] < values[child + 1]) child++;
    if (values[root] >= values[child]) return;
    i64 value = values[root];
    values[root] = values[child];
    values[child] = value;
  }
}

static __device__ void heap_sort(i64 *values, i64 number) {
  for (i64 root = number / 2 - 1; root >= 0; root--) sift(values, root, number);
  for (i64 end = number - 1; end > 0; end--) {
    i64 value = values[0];
    values[0] = values[end];
    values[end] = value;
    sift(values, 0, end);
  }
}

// All items, laid out on a line: workflows/sampling/candidates.py, `Candidates`. Null pointers as its `None`.
struct Line {
  const i64 *cdf, *items, *since;
  i64 n_items;
};

// Number of items that had appeared by a time.
static __device__ i64 cutoff_at(const Line &line, i64 time) {
  if (!line.since) return line.n_items;
  i64 low = 0, high = line.n_items;
  while (low < high) {
    i64 middle = (low + high) / 2;
    if (line.since[middle] <= time) low = middle + 1;
    else high = middle;
  }
  return low;
}

static __device__ i64 available(const Line &line, const Taken &own, i64 limit) {
  return cdf_at(line.cdf, limit) - weight_below(own, limit);
}

// `length` items, ascending: distinct ones of the remaining line, repeated if there are fewer; or, if not `exact`, any.
static __device__ void draw_series(u64 key, const Taken &own, const Line &line, i64 limit, bool exact, i64 length,
                                   i64 *chosen) {
  i64 found = exact ? 0 : length;
  if (!exact)
    for (i64 i = 0; i < length; i++) {
      i64 point = below(draw(key, i), cdf_at(line.cdf, limit));
      chosen[i] = position_of(point, own, chosen, 0, line.cdf, limit);
    }
  for (i64 drawn = 0; found < length;) {
    i64 left = available(line, own, limit) - chosen_below(chosen, found, line.cdf, line.n_items);
    if (left <= 0) break;
    for (i64 i = found; i < length; i++, drawn++)
      chosen[i] = position_of(below(draw(key, drawn), left), own, chosen, found, line.cdf, limit);
    heap_sort(chosen, length);
    found = 0;
    for (i64 i = 0; i < length; i++)
      if (!i || chosen[i] != chosen[found - 1]) chosen[found++] = chosen[i];
  }
  for (i64 i = found; i < length; i++) chosen[i] = found ? chosen[i % found] : 0;
  if (line.items)
    for (i64 i = 0; i < length; i++) chosen[i] = line.items[chosen[i]];
  heap_sort(chosen, length);
}

// The history of one user: workflows/sampling/interactions.py, `Histories`.
struct Histories {
  const i64 *users, *starts, *counts, *by_time, *positions, *weights;

  __device__ Taken own(i64 user) const {
    i64 start = starts[user];
    return {positions + start, weights ? weights + start : 0, counts[user], counts[user]};
  }
  __device__ i64 last(i64 user) const { return by_time[starts[user] + counts[user] - 1]; }
};

static __device__ i64 load(const void *column, i64 bytes, i64 index) {
  return bytes == 4 ? ((const int *)column)[index] : ((const i64 *)column)[index];
}

// The series of each selected user, item ids: int64 [T, length]. One thread per series.
extern "C" __global__ void series_negatives(i64 n_series, const i64 *selected, const i64 *users, const i64 *starts,
                                            const i64 *counts, const i64 *by_time, const void *times, i64 time_bytes,
                                            const i64 *positions, const i64 *weights, const i64 *cdf, const i64 *items,
                                            const i64 *since, i64 n_items, i64 length, i64 exact, u64 seed, i64 *out) {
  Histories history = {users, starts, counts, by_time, positions, weights};
  Line line = {cdf, items, since, n_items};
  ELEMENTS(series, n_series) {
    i64 user = selected[series], limit = cutoff_at(line, load(times, time_bytes, history.last(user)));
    Taken own = history.own(user);
    if (!exact) own.number = 0;
    if (available(line, own, limit) <= 0) limit = n_items;  // nothing unseen had appeared by then: time is ignored
    draw_series(key_of(seed, users[user]), own, line, limit, exact, length, out + series * length);
  }
}

// --- Training negatives: workflows/sampling/negatives.py, `row_negatives` ---

// Draw `number` of a user: one of the items below `limit` that are not the user's own.
static __device__ i64 negative(u64 key, u64 number, const Taken &own, const i64 *cdf, i64 limit, i64 n_items,
                               bool draw_again) {
  u64 bits = draw(key, number);
  i64 left = cdf_at(cdf, limit) - weight_below(own, limit);
  if (left <= 0) return n_items - 1;  // there is none
  if (draw_again) {  // over all items first, and over the unseen ones only after a hit
    i64 position = below(bits, n_items);
    if (!is_taken(own, position)) return position;
    bits = mix(bits);
  }
  return position_of(below(bits, left), own, 0, 0, cdf, limit);
}

// `per_row` positions per row. The rows of owner o begin at row_starts[o], and its own positions at own_starts[o]
// (null: no position is taken). One thread per draw.
extern "C" __global__ void row_positions(i64 n_rows, const i64 *users, const i64 *owners, const i64 *row_starts,
                                         const i64 *own_starts, const i64 *positions, const i64 *weights,
                                         const i64 *cdf, const i64 *cutoffs, i64 n_items, i64 per_row, i64 draw_again,
                                         u64 seed, i64 *out, unsigned char *exists) {
  ELEMENTS(index, n_rows * per_row) {
    i64 row = index / per_row, owner = owners[row], limit = cutoffs ? cutoffs[row] : n_items;
    Taken own = {positions, weights, 0, 0};
    if (own_starts) {
      i64 start = own_starts[owner];
      own.positions += start;
      own.weights = weights ? weights + start : 0;
      own.number = own.free = own_starts[owner + 1] - start;
    }
    if (cutoffs && cdf_at(cdf, limit) - weight_below(own, limit) <= 0) limit = n_items;
    u64 number = (row - row_starts[owner]) * per_row + index % per_row;
    out[index] = negative(key_of(seed, users[row]), number, own, cdf, limit, n_items, draw_again);
    if (index % per_row == 0) exists[row] = cdf_at(cdf, limit) - weight_below(own, limit) > 0;
  }
}

// --- Histories: workflows/sampling/interactions.py, `value_ranges`, `stable_order`, `histories` ---

static const u64 SIGN = 1ULL << 63;

// The complement of the least and the greatest value of up to three columns, both as unsigned numbers from the least
// 64-bit integer: maxima that begin at 0.
extern "C" __global__ void value_ranges(i64 n_threads, i64 n_rows, const void *a, i64 a_bytes, const void *b,
                                        i64 b_bytes, const void *c, i64 c_bytes, u64 *ranges) {
  const void *columns[3] = {a, b, c};
  const i64 bytes[3] = {a_bytes, b_bytes, c_bytes};
  ELEMENTS(thread, n_threads) {
    for (int number = 0; number < 3; number++) {
      if (!columns[number] || thread >= n_rows) continue;
      u64 least = ~0ULL, greatest = 0;
      for (i64 row = thread; row < n_rows; row += n_threads) {
        u64 value = (u64)load(columns[number], bytes[number], row) ^ SIGN;
        least = value < least ? value : least;
        greatest = value > greatest ? value : greatest;
      }
      atomicMax(&ranges[2 * number], ~least);
      atomicMax(&ranges[2 * number + 1], greatest);
    }
  }
}

// Sort keys: up to three columns, each from its least value on and shifted to its bits.
extern "C" __global__ void sort_keys(i64 n_rows, const void *a, i64 a_bytes, i64 a_low, i64 a_shift, const void *b,
                                     i64 b_bytes, i64 b_low, i64 b_shift, const void *c, i64 c_bytes, i64 c_low,
                                     i64 c_shift, i64 *keys) {
  ELEMENTS(row, n_rows) {
    i64 key = (load(a, a_bytes, row) - a_low) << a_shift;
    if (b) key |= (load(b, b_bytes, row) - b_low) << b_shift;
    if (c) key |= (load(c, c_bytes, row) - c_low) << c_shift;
    keys[row] = key;
  }
}

// In sorted order, 1 at the first row of each pair, and of each user; rows with a negative id are dropped on request.
extern "C" __global__ void first_rows(i64 n_rows, const i64 *order, const void *users, i64 user_bytes,
                                      const void *items, i64 item_bytes, i64 drop_negative, i64 *flags) {
  ELEMENTS(place, n_rows) {
    i64 user = load(users, user_bytes, order[place]), item = load(items, item_bytes, order[place]);
    bool is_new = place == 0, known = !drop_negative || (user >= 0 && item >= 0);
    bool is_pair = is_new;
    if (!is_new) {
      i64 before = order[place - 1], item_before = load(items, item_bytes, before);
      is_new = load(users, user_bytes, before) != user || (drop_negative && item_before < 0);
      is_pair = is_new || item_before != item;
    }
    flags[place] = known && is_pair;
    flags[n_rows + place] = known && is_new;
  }
}

// The fields of `Histories` from the sorted order and the cumulative sums of the flags.
extern "C" __global__ void histories(i64 n_rows, const i64 *order, const i64 *sums, const void *users, i64 user_bytes,
                                     const void *items, i64 item_bytes, const void *times, i64 time_bytes,
                                     i64 *own_users, i64 *starts, i64 *rows, void *own_items, void *own_times) {
  ELEMENTS(place, n_rows) {
    i64 pair = sums[place] - 1, user = sums[n_rows + place] - 1, row = order[place];
    if (pair < 0 || (place && sums[place - 1] == sums[place])) continue;
    rows[pair] = user;
    if (item_bytes == 4) ((int *)own_items)[pair] = ((const int *)items)[row];
    else ((i64 *)own_items)[pair] = ((const i64 *)items)[row];
    if (time_bytes == 4) ((int *)own_times)[pair] = ((const int *)times)[row];
    else ((i64 *)own_times)[pair] = ((const i64 *)times)[row];
    if (place && sums[n_rows + place - 1] == sums[n_rows + place]) continue;
    own_users[user] = load(users, user_bytes, row);
    starts[user] = pair;
  }
}

// --- The leave-one-out split: workflows/operators/leave_one_out.py ---

struct Rows {  // output columns
  int *users, *items;
  float *labels;
  signed char *splits;

  __device__ void write(i64 row, i64 user, i64 item, bool positive, bool test) const {
    users[row] = (int)user;
    items[row] = (int)item;
    labels[row] = positive;
    splits[row] = test;
  }
};

// Train rows, each followed by `per_row` negatives (none if its user has every item). One thread per row.
extern "C" __global__ void train_rows(i64 n_rows, const i64 *selected, i64 n_series, const i64 *users,
                                      const i64 *starts, const i64 *counts, const i64 *rows, const i64 *by_time,
                                      const void *items, i64 item_bytes, const void *times, i64 time_bytes,
                                      const i64 *positions, const i64 *weights, const i64 *cdf, const i64 *line_items,
                                      const i64 *line_positions, const i64 *since, i64 n_items, i64 per_row, i64 exact, const i64 *full_before,
                                      u64 seed, int *out_users, int *out_items, float *out_labels,
                                      signed char *out_splits) {
  Histories history = {users, starts, counts, by_time, positions, weights};
  Line line = {cdf, line_items, since, n_items};
  Rows out = {out_users, out_items, out_labels, out_splits};
  ELEMENTS(row, n_rows) {
    // Before each train row lie the last rows of all users with a series that end by then.
    i64 low = 0, high = n_series;
    while (low < high) {
      i64 middle = (low + high) / 2, user = selected[middle];
      if (starts[user] + counts[user] - 1 - middle <= row) low = middle + 1;
      else high = middle;
    }
    i64 place = row + low, pair = by_time[place], owner = rows[place], item = load(items, item_bytes, pair);
    // Users with every item have one sample a row; full_before counts their rows up to each user's first one.
    i64 first = row * (1 + per_row) - (full_before ? per_row * full_before[owner] : 0);
    bool is_full = exact && counts[owner] == n_items;
    if (per_row && is_full) first -= per_row * (place - starts[owner]);
    out.write(first, users[owner], item, true, false);
    if (!per_row || is_full) continue;
    Taken own = history.own(owner);
    bool held_out = counts[owner] > 1 && counts[owner] < n_items;
    if (!exact) own.number = own.free = 0;
    else if (held_out) {
      i64 last = load(items, item_bytes, history.last(owner));
      own.free = count_below(own, line_positions ? line_positions[last] : last);
    }
    i64 limit = times ? cutoff_at(line, load(times, time_bytes, pair)) : n_items;
    if (available(line, own, limit) <= 0) limit = n_items;
    u64 key = key_of(seed, users[owner]), number = (place - starts[owner]) * per_row;
    for (i64 i = 0; i < per_row; i++) {
      i64 position = negative(key, number + i, own, cdf, limit, n_items, exact && !cdf && !since);
      out.write(first + 1 + i, users[owner], line_items ? line_items[position] : position, false, false);
    }
  }
}

// Test rows, from output row `first` on: the held-out interaction of each selected user, and its negatives.
extern "C" __global__ void test_rows(i64 n_rows, i64 first, i64 length, const i64 *selected, const i64 *users,
                                     const i64 *starts, const i64 *counts, const i64 *by_time, const void *items,
                                     i64 item_bytes, const i64 *negatives, int *out_users, int *out_items,
                                     float *out_labels, signed char *out_splits) {
  Histories history = {users, starts, counts, by_time, 0, 0};
  Rows out = {out_users, out_items, out_labels, out_splits};
  ELEMENTS(row, n_rows) {
    i64 series = row / (1 + length), number = row % (1 + length), user = selected[series];
    i64 item = number ? negatives[series * length + number - 1] : load(items, item_bytes, history.last(user));
    out.write(first + row, users[user], item, number == 0, true);
  }
}

// --- Ids: workflows/operators/encode.py ---

extern "C" __global__ void look_up_direct(i64 n_ids, const void *ids, i64 id_bytes, i64 low, const int *table,
                                          i64 outside, int *found) {
  ELEMENTS(index, n_ids) {
    u64 place = (u64)load(ids, id_bytes, index) - (u64)low;  // an id below `low` wraps around
    found[index] = table[place < (u64)outside ? place : (u64)outside];
  }
}

extern "C" __global__ void look_up_sorted(i64 n_ids, const void *ids, i64 id_bytes, const i64 *known,
                                          const int *numbers, i64 n_known, int *found) {
  ELEMENTS(index, n_ids) {
    i64 id = load(ids, id_bytes, index), low = 0, high = n_known;
    while (low < high) {
      i64 middle = (low + high) / 2;
      if (known[middle] < id) low = middle + 1;
      else high = middle;
    }
    found[index] = low < n_known && known[low] == id ? numbers[low] : -1;
  }
}

// --- Fields of delimited text: preprocessing/sources/gpu_fields.py ---

// A column of UTF-8 texts: text i is chars[offset i] to chars[offset i + 1].
struct Texts {
  const unsigned char *chars;
  const void *offsets;  // 64-bit if `wide`, otherwise 32-bit
  i64 wide;
};

static __device__ i64 offset_of(const Texts &texts, i64 number) {
  return texts.wide ? ((const i64 *)texts.offsets)[number] : ((const int *)texts.offsets)[number];
}

enum { VALUE, MISSING, UNSURE };  // what became of a field; the CPU's reader decides about one that is unsure

static __device__ bool is_digit(unsigned char c) { return c >= '0' && c <= '9'; }

static __device__ bool equals(const unsigned char *text, i64 length, const char *other) {
  for (i64 i = 0; i < length; i++)
    if (!other[i] || text[i] != (unsigned char)other[i]) return false;
  return !other[length];
}

// Whether a field is one of `NULLS`.
static __device__ bool is_missing(const unsigned char *text, i64 length) {
  if (!length) return true;
  return length <= 4 && (equals(text, length, "\\N") || equals(text, length, "NULL") || equals(text, length, "null") ||
                         equals(text, length, "NaN") || equals(text, length, "nan"));
}

struct Field {
  const unsigned char *text;
  i64 length;
};

static __device__ Field field_of(const Texts &texts, i64 number) {
  i64 start = offset_of(texts, number);
  Field field = {texts.chars + start, offset_of(texts, number + 1) - start};
  return field;
}

// A field without the blanks around it, as Arrow reads numbers.
static __device__ Field trimmed(Field field) {
  while (field.length && (field.text[0] == ' ' || field.text[0] == '\t')) field.text++, field.length--;
  while (field.length && (field.text[field.length - 1] == ' ' || field.text[field.length - 1] == '\t')) field.length--;
  return field;
}

// Which texts are missing: those that are empty once trimmed, and the `NULLS` as they stand in the file.
extern "C" __global__ void missing_texts(i64 n, const unsigned char *chars, const void *offsets, i64 wide,
                                         const unsigned char *trimmed_chars, const void *trimmed_offsets,
                                         i64 trimmed_wide, unsigned char *states) {
  Texts texts = {chars, offsets, wide}, trimmed_texts = {trimmed_chars, trimmed_offsets, trimmed_wide};
  ELEMENTS(i, n) {
    Field field = field_of(texts, i);
    bool empty = !field_of(trimmed_texts, i).length;
    states[i] = empty || is_missing(field.text, field.length) ? MISSING : VALUE;
  }
}

// Integers of up to 18 digits without leading zeros.
extern "C" __global__ void parse_integers(i64 n, const unsigned char *chars, const void *offsets, i64 wide, i64 *values,
                                          unsigned char *states) {
  Texts texts = {chars, offsets, wide};
  ELEMENTS(i, n) {
    Field field = field_of(texts, i);
    values[i] = 0;
    if (is_missing(field.text, field.length)) {
      states[i] = MISSING;
      continue;
    }
    field = trimmed(field);
    bool negative = field.length && field.text[0] == '-';
    if (negative) field.text++, field.length--;
    bool sure = field.length > 0 && field.length <= 18 && (field.length == 1 || field.text[0] != '0');
    i64 value = 0;
    for (i64 at = 0; sure && at < field.length; at++) {
      sure = is_digit(field.text[at]);
      value = value * 10 + (field.text[at] - '0');
    }
    states[i] = sure ? VALUE : UNSURE;
    if (sure) values[i] = negative ? -value : value;
  }
}

// Numbers of up to nine digits before the point and six after it: an exact integer over an exact power of ten, so that
// the quotient is the nearest double, as in Arrow.
extern "C" __global__ void parse_decimals(i64 n, const unsigned char *chars, const void *offsets, i64 wide,
                                          double *values, unsigned char *states) {
  Texts texts = {chars, offsets, wide};
  ELEMENTS(i, n) {
    Field field = field_of(texts, i);
    values[i] = 0;
    if (is_missing(field.text, field.length)) {
      states[i] = MISSING;
      continue;
    }
    field = trimmed(field);
    bool negative = field.length && field.text[0] == '-';
    if (negative) field.text++, field.length--;
    i64 digits = 0, whole = 0, decimals = 0, scale = 1;
    bool point = false, sure = true;
    for (i64 at = 0; sure && at < field.length; at++) {
      if (field.text[at] == '.' && !point) {
        point = true;
        continue;
      }
      sure = is_digit(field.text[at]) && whole < 10 && decimals < 7;
      if (!sure) break;
      digits = digits * 10 + (field.text[at] - '0');
      if (point) decimals++, scale *= 10;
      else whole++;
    }
    sure = sure && whole > 0 && whole < 10 && decimals < 7 && (!point || decimals > 0);
    states[i] = sure ? VALUE : UNSURE;
    double value = (double)digits / (double)scale;
    if (sure) values[i] = negative ? -value : value;
  }
}

// The number in `length` digits; -1 if there are other characters.
static __device__ i64 digits_of(const unsigned char *text, i64 length) {
  i64 value = 0;
  for (i64 i = 0; i < length; i++) {
    if (!is_digit(text[i])) return -1;
    value = value * 10 + (text[i] - '0');
  }
  return value;
}

// Days since 1970-01-01 of a date in the Gregorian calendar; its March to February years start a 400-year cycle.
static __device__ i64 days_of(i64 year, i64 month, i64 day) {
  i64 shifted = month > 2 ? year : year - 1, cycle = shifted / 400, of_cycle = shifted % 400;
  i64 of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
  return cycle * 146097 + of_cycle * 365 + of_cycle / 4 - of_cycle / 100 + of_year - 719468;
}

static __device__ i64 days_in(i64 year, i64 month) {
  bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
  if (month == 2) return leap ? 29 : 28;
  return month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
}

// ISO dates, 2024-01-31, or with a time, 2024-01-31T12:34:56, 2024-01-31 12:34:56.789: microseconds since 1970. With
// `zone`, each has a time and ends in Z.
extern "C" __global__ void parse_dates(i64 n, const unsigned char *chars, const void *offsets, i64 wide, i64 zone,
                                       i64 *values, unsigned char *states) {
  Texts texts = {chars, offsets, wide};
  ELEMENTS(i, n) {
    Field field = field_of(texts, i);
    const unsigned char *text = field.text;
    values[i] = 0;
    if (is_missing(text, field.length)) {
      states[i] = MISSING;
      continue;
    }
    i64 length = field.length;
    bool sure = length >= 10;
    if (sure && zone) sure = text[length - 1] == 'Z' && --length >= 19;
    sure = sure && (length == 10 || length == 19 || (length >= 21 && length <= 26)) && text[4] == '-' && text[7] == '-';
    i64 micros = 0;
    if (sure) {
      i64 year = digits_of(text, 4), month = digits_of(text + 5, 2), day = digits_of(text + 8, 2);
      sure = year >= 1 && month >= 1 && month <= 12 && day >= 1 && day <= days_in(year, month);
      if (sure) micros = days_of(year, month, day) * 86400000000LL;
    }
    if (sure && length > 10) {
      i64 hour = digits_of(text + 11, 2), minute = digits_of(text + 14, 2), second = digits_of(text + 17, 2);
      sure = (text[10] == 'T' || text[10] == ' ') && text[13] == ':' && text[16] == ':' && hour >= 0 && hour < 24 &&
             minute >= 0 && minute < 60 && second >= 0 && second < 60;
      micros += ((hour * 60 + minute) * 60 + second) * 1000000LL;
    }
    if (sure && length > 20) {
      i64 fraction = digits_of(text + 20, length - 20);
      sure = text[19] == '.' && fraction >= 0;
      for (i64 given = length - 20; given < 6; given++) fraction *= 10;
      micros += fraction;
    }
    states[i] = sure ? VALUE : UNSURE;
    if (sure) values[i] = micros;
  }
}

// The bits of doubles as integers of the same order: preprocessing/prepare/row_filter.py, `_time_column`.
extern "C" __global__ void ordered_bits(i64 n, const i64 *bits, i64 *values) {
  ELEMENTS(i, n) values[i] = bits[i] < 0 ? bits[i] ^ 0x7FFFFFFFFFFFFFFFLL : bits[i];
}

// --- The key of each text, SipHash-2-4 with pandas' fixed key, mixed: preprocessing/prepare/text_ids.py ---

static __device__ u64 rotated(u64 x, int bits) { return (x << bits) | (x >> (64 - bits)); }

static __device__ void sip_round(u64 *v) {
  v[0] += v[1];
  v[2] += v[3];
  v[1] = rotated(v[1], 13) ^ v[0];
  v[3] = rotated(v[3], 16) ^ v[2];
  v[0] = rotated(v[0], 32);
  v[2] += v[1];
  v[0] += v[3];
  v[1] = rotated(v[1], 17) ^ v[2];
  v[3] = rotated(v[3], 21) ^ v[0];
  v[2] = rotated(v[2], 32);
}

extern "C" __global__ void text_keys(i64 n, const unsigned char *chars, const void *offsets, i64 wide, u64 *keys) {
  Texts texts = {chars, offsets, wide};
  ELEMENTS(i, n) {
    Field field = field_of(texts, i);
    const u64 low = 0x3736353433323130ULL, high = 0x3635343332313938ULL;  // the characters 0123456789123456
    u64 v[4] = {low ^ 0x736F6D6570736575ULL, high ^ 0x646F72616E646F6DULL, low ^ 0x6C7967656E657261ULL,
                high ^ 0x7465646279746573ULL};
    for (i64 start = 0; start <= field.length; start += 8) {  // the last word is partial, or empty
      i64 left = field.length - start < 8 ? field.length - start : 8;
      u64 word = left < 8 ? (u64)field.length << 56 : 0;
      for (i64 j = 0; j < left; j++) word |= (u64)field.text[start + j] << (8 * j);
      v[3] ^= word;
      sip_round(v);
      sip_round(v);
      v[0] ^= word;
    }
    v[2] ^= 0xFF;
    for (int round = 0; round < 4; round++) sip_round(v);
    keys[i] = mix(v[0] ^ v[1] ^ v[2] ^ v[3]);
  }
}

// --- Training batches: model/data/resident_batches.py ---

// The place of an element in a random order of `size` (workflows/sampling/permutation.py).
static __device__ i64 place_of(i64 element, i64 size, i64 height, i64 width, u64 seed) {
  const i64 rounds = 8;
  do {
    i64 row = element / width, column = element - row * width;
    for (i64 number = 0; number < rounds; number += 2) {
      row += below(draw(seed, column * rounds + number), height);
      if (row >= height) row -= height;
      column += below(draw(seed, row * rounds + number + 1), width);
      if (column >= width) column -= width;
    }
    element = row * width + column;
  } while (element >= size);
  return element;
}

// The position that contains a point of the line that remains without the taken positions: one search over these, and
// one over the line if weights differ.
template <typename Position>
static __device__ i64 remaining_position(i64 point, const TakenAs<Position> &taken, const i64 *cdf, i64 n_items) {
  i64 low = 0, high = taken.number;
  while (low < high) {
    i64 middle = (low + high) / 2;
    i64 before = taken.weights ? taken.weights[middle] - taken.weights[0] : middle;
    if (cdf_at(cdf, taken.positions[middle]) - before <= point) low = middle + 1;
    else high = middle;
  }
  point += taken.weights ? taken.weights[low] - taken.weights[0] : low;
  if (!cdf) return point;
  low = 0, high = n_items - 1;
  while (low < high) {
    i64 middle = (low + high) / 2;
    if (cdf[middle + 1] > point) high = middle;
    else low = middle + 1;
  }
  return low;
}

// Samples of a step: some elements of the order of an epoch, `group_size` samples each. Each of the first `n_drawn`
// rows is followed by `per_row` negatives; the last `n_alone` of the n_rows rows stand alone. An element is a row with
// its negatives, or (group_size 1) a sample. One thread per sample.
extern "C" __global__ void train_batch(i64 n_samples, i64 first, i64 group_size, const int *users, const int *items,
                                       const float *labels, i64 n_rows, i64 n_drawn, i64 n_alone, const i64 *row_starts,
                                       const int *own_items, const i64 *own_weights, const i64 *own_starts,
                                       const i64 *own_ends, const i64 *cdf, i64 n_items, i64 per_row, u64 order_seed,
                                       i64 height, i64 width, u64 seed, int *out_users, int *out_items,
                                       float *out_labels, i64 *out_rows) {
  i64 samples_drawn = n_drawn * (1 + per_row);
  i64 size = group_size > 1 ? n_drawn : samples_drawn + n_alone;
  ELEMENTS(index, n_samples) {
    i64 element = place_of(first + index / group_size, size, height, width, order_seed);
    i64 row = element, number = index % group_size;  // 0: the row itself
    if (group_size == 1) {
      row = element < samples_drawn ? element / (1 + per_row) : n_rows - n_alone + element - samples_drawn;
      number = element < samples_drawn ? element % (1 + per_row) : 0;
    }
    i64 user = users[row], item = items[row];
    float label = labels ? labels[row] : 1.0f;
    if (number && own_items) {
      i64 start = own_starts[user];
      i64 number_own = own_ends[user] - start;
      TakenAs<int> own = {own_items + start, own_weights ? own_weights + start : 0, number_own, number_own};
      i64 available = cdf_at(cdf, n_items) - (own_weights ? own.weights[own.number] - own.weights[0] : own.number);
      u64 bits = draw(key_of(seed, user), (row - row_starts[user]) * per_row + number - 1);
      bool drawn = false;
      if (!cdf) {  // over all items first, and over the unseen ones only after a hit
        item = below(bits, n_items);
        i64 place = count_below(own, item);
        drawn = place == own.number || own.positions[place] != item;
        if (!drawn) bits = mix(bits);
      }
      if (!drawn) item = remaining_position(below(bits, available), own, cdf, n_items);
    } else if (number) {  // any item
      item = below(draw(key_of(seed, user * n_items + item), number - 1), n_items);
    }
    out_users[index] = user;
    out_items[index] = item;
    out_labels[index] = number ? 0.0f : label;
    if (out_rows) out_rows[index] = row;
  }
}

// --- What a partition holds: preprocessing/prepare/writer.py ---

// Added to `counts`: for each user, 1 per train positive and 2**32 for a held-out interaction; for each item, its
// interactions; and the number of series in which a negative is repeated.
// Also writes what preprocessing/fingerprint.py, `rows_hash`, adds up.
extern "C" __global__ void count_rows(i64 n_rows, const int *users, const int *items, const float *labels,
                                      const signed char *splits, i64 series, i64 n_users, i64 n_items, u64 *counts,
                                      u64 *hashes) {
  ELEMENTS(row, n_rows) {
    bool linked = row && users[row - 1] == users[row] && splits[row - 1] == splits[row];
    u64 before = linked ? (u64)items[row - 1] + 1 : 0;
    u64 key = (u64)users[row] << 32 | (u64)items[row] << 1 | (u64)(labels[row] > 0);
    hashes[row] = mix((splits[row] ? ~key : key) + before * GOLDEN);
    if (labels[row] <= 0) continue;
    atomicAdd(&counts[users[row]], splits[row] ? 1ULL << 32 : 1ULL);
    atomicAdd(&counts[n_users + items[row]], 1ULL);
    if (!splits[row]) continue;
    bool repeated = false;  // negatives ascend, behind the positive
    for (i64 other = row + 2; other < row + series; other++) repeated = repeated || items[other] == items[other - 1];
    if (repeated) atomicAdd(&counts[n_users + n_items], 1ULL);
  }
}
