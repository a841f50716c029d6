// CUDA kernels for work that array code would spread over hundreds of launches.
//
// Each kernel is equal, value by value, to array code that NumPy runs. They use no header and no shared memory, and
// their grid-stride loops also run as one thread, so the tests compile this file for the CPU and compare
// (tests/host_kernels.py).

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
  return taken.weights ? taken.weights[number] - taken.weights[0] : number;
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

// --- Test negatives: workflows/sampling/negatives.py, `_without_replacement` ---

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

// `length` distinct remaining positions per series, ascending; repeated if there are fewer. One thread per series.
extern "C" __global__ void series_positions(i64 n_series, const i64 *starts, const i64 *ends, const i64 *positions,
                                            const i64 *weights, const i64 *cdf, const i64 *keys, const i64 *cutoffs,
                                            i64 n_items, i64 length, i64 *out) {
  ELEMENTS(series, n_series) {
    i64 *chosen = out + series * length;
    Taken own = {positions + starts[series], weights ? weights + starts[series] : 0, ends[series] - starts[series]};
    i64 limit = cutoffs ? cutoffs[series] : n_items;
    i64 available = cdf_at(cdf, limit) - weight_below(own, limit);
    if (available <= 0) {  // nothing unseen had appeared by then: time is ignored
      limit = n_items;
      available = cdf_at(cdf, limit) - weight_below(own, limit);
    }
    i64 found = 0, drawn = 0;
    while (found < length) {
      i64 left = available - chosen_below(chosen, found, cdf, n_items);
      if (left <= 0) break;
      for (i64 i = found; i < length; i++, drawn++) {
        i64 point = below(draw(keys[series], drawn), left);
        chosen[i] = position_of(point, own, chosen, found, cdf, limit);
      }
      heap_sort(chosen, length);
      found = 0;
      for (i64 i = 0; i < length; i++)
        if (!i || chosen[i] != chosen[found - 1]) chosen[found++] = chosen[i];
    }
    for (i64 i = found; i < length; i++) chosen[i] = found ? chosen[i % found] : 0;
    if (found < length) heap_sort(chosen, length);
  }
}

// --- Training negatives: workflows/sampling/negatives.py, `row_negatives` ---

// Draw `number` of a user: one of the items below `limit` that are not the user's own.
static __device__ i64 negative(u64 key, u64 number, const Taken &own, const i64 *cdf, i64 limit, i64 n_items,
                               bool draw_again) {
  u64 bits = draw(key, number);
  i64 available = cdf_at(cdf, limit) - weight_below(own, limit);
  if (available <= 0) return n_items - 1;  // there is none
  if (draw_again) {  // over all items first, and over the unseen ones only after a hit
    i64 position = below(bits, n_items);
    i64 place = count_below(own, position);
    if (place == own.number || own.positions[place] != position) return position;
    bits = mix(bits);
  }
  return position_of(below(bits, available), own, 0, 0, cdf, limit);
}

// `per_row` positions per row. The rows of owner o begin at row_starts[o], and its own positions at own_starts[o]
// (null: no position is taken). One thread per draw.
extern "C" __global__ void row_positions(i64 n_rows, const i64 *users, const i64 *owners, const i64 *row_starts,
                                         const i64 *own_starts, const i64 *positions, const i64 *weights,
                                         const i64 *cdf, const i64 *cutoffs, i64 n_items, i64 per_row, i64 draw_again,
                                         u64 seed, i64 *out, unsigned char *exists) {
  ELEMENTS(index, n_rows * per_row) {
    i64 row = index / per_row, owner = owners[row], limit = cutoffs ? cutoffs[row] : n_items;
    Taken own = {positions, weights, 0};
    if (own_starts) {
      i64 start = own_starts[owner];
      own.positions += start;
      own.weights = weights ? weights + start : 0;
      own.number = own_starts[owner + 1] - start;
    }
    if (cutoffs && cdf_at(cdf, limit) - weight_below(own, limit) <= 0) limit = n_items;
    u64 number = (row - row_starts[owner]) * per_row + index % per_row;
    out[index] = negative(key_of(seed, users[row]), number, own, cdf, limit, n_items, draw_again);
    if (index % per_row == 0) exists[row] = cdf_at(cdf, limit) - weight_below(own, limit) > 0;
  }
}
