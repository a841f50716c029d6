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
struct Taken {
  const i64 *positions;
  const i64 *weights;  // cumulative weight before each position, and past the last one; null: every weight is 1
  i64 number;
  i64 free;  // index of one that is not taken after all; `number` or more: none
};

static __device__ i64 cdf_at(const i64 *cdf, i64 position) { return cdf ? cdf[position] : position; }

// Number of taken positions below `position`.
static __device__ i64 count_below(const Taken &taken, i64 position) {
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

// Sort keys: up to three columns, each from its least value on, the first one in the highest bits.
extern "C" __global__ void sort_keys(i64 n_rows, const void *a, i64 a_bytes, i64 a_low, i64 a_shift, const void *b,
                                     i64 b_bytes, i64 b_low, i64 b_shift, const void *c, i64 c_bytes, i64 c_low,
                                     i64 *keys) {
  ELEMENTS(row, n_rows) {
    i64 key = (load(a, a_bytes, row) - a_low) << a_shift | (load(b, b_bytes, row) - b_low) << b_shift;
    keys[row] = c ? key | (load(c, c_bytes, row) - c_low) : key;
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
