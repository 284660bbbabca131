// Attention in bfloat16, softmax(scaling * q k^T) v, block by block: the matrix of scores is never in
// memory as a whole. Scores, softmax and sums are float32.
//
// Queries lie side by side in the lanes of VECTORS registers: maxima and sums over keys then need no
// exchange between lanes, and a head of 72 leaves none empty. A lane of 32 bits holds a pair of
// bfloat16 along what is summed over, as AVX512-BF16 multiplies them. Built by tower_kernel.py.
//
// Query, key, value and out are [pictures][patches][heads][width], width even and at most MOST_WIDTH.

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define VECTORS 4
#define QUERIES (16 * VECTORS) // of one block
#define KEYS 128               // of one block: its scores stay in a core's cache
#define ROWS 6                 // of the sums that are in registers at once: ROWS * VECTORS of 32
#define MOST_WIDTH 128         // as in tower_kernel.py

typedef uint32_t __attribute__((may_alias, aligned(2))) pair; // two bfloat16
typedef __m512 floats[VECTORS];                               // a number for each query
typedef __m512i pairs[VECTORS];                               // a pair for each query

// sums[r] = factor * sums[r] + left[r] * right, for `rows` rows: a constant wherever this is inlined.
static inline __attribute__((always_inline)) void add_rows(int rows, const uint16_t *left, long stride,
                                                           const pairs *right, long count,
                                                           const __m512 *factor, floats *sums) {
  floats found[ROWS];
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < VECTORS; v++) found[r][v] = _mm512_mul_ps(factor[v], sums[r][v]);
  for (long i = 0; i < count; i++) {
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
      __m512i both = _mm512_set1_epi32((int)*(const pair *)(left + r * stride + 2 * i));
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++)
        found[r][v] = _mm512_dpbf16_ps(found[r][v], (__m512bh)both, (__m512bh)right[i][v]);
    }
  }
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < VECTORS; v++) sums[r][v] = found[r][v];
}

// The same for any number of rows.
static void add_products(long rows, const uint16_t *left, long stride, const pairs *right, long count,
                         const __m512 *factor, floats *sums) {
  long r = 0;
  for (; r + ROWS <= rows; r += ROWS) add_rows(ROWS, left + r * stride, stride, right, count, factor, sums + r);
  for (; r < rows; r++) add_rows(1, left + r * stride, stride, right, count, factor, sums + r);
}

// 2^x for x <= 0, to 3e-6. Not a number stays so: it is the second operand of the maximum.
static inline __m512 power_of_2(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-126), x);
  __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 part = _mm512_sub_ps(x, whole), power = _mm512_set1_ps(0.0095701017f);
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(0.0559178603f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(0.240247448f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(0.693121815f));
  power = _mm512_fmadd_ps(power, part, _mm512_set1_ps(0.999999261f));
  return _mm512_scalef_ps(power, whole);
}

// Turn `count` scores of each query into pairs of weights: 2^(scale * (score - the largest so far)).
// `most` and `total` are the largest score and the sum so far; `factor` is what earlier weights and
// all that was summed with them are still worth.
static void soften(const floats *scores, long count, float scale, pairs *weights, floats most, floats total,
                   floats factor) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i partners = _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(16)), 16);
  const __m512i order = _mm512_or_si512(lanes, partners);
  const __m512 scales = _mm512_set1_ps(scale);
  for (int v = 0; v < VECTORS; v++) {
    __m512 largest = most[v], sum = _mm512_setzero_ps();
    for (long k = 0; k < count; k++) largest = _mm512_max_ps(largest, scores[k][v]);
    __m512 shift = _mm512_mul_ps(largest, scales);
    for (long k = 0; k < count; k += 2) {
      __m512 first = power_of_2(_mm512_fmsub_ps(scores[k][v], scales, shift)), second = _mm512_setzero_ps();
      if (k + 1 < count) second = power_of_2(_mm512_fmsub_ps(scores[k + 1][v], scales, shift));
      sum = _mm512_add_ps(sum, _mm512_add_ps(first, second));
      weights[k / 2][v] = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
    factor[v] = power_of_2(_mm512_fmsub_ps(most[v], scales, shift));
    total[v] = _mm512_fmadd_ps(total[v], factor[v], sum);
    most[v] = largest;
  }
}

// One block of `count` queries with all keys. `keys` is [patches][width]; `values` is [block of keys]
// [width][KEYS]; of query and out, patches are `stride` apart.
static void attend_block(const uint16_t *query, uint16_t *out, long count, long stride, const uint16_t *keys,
                         const uint16_t *values, long patches, long width, float scale) {
  pairs turned[MOST_WIDTH / 2], weights[KEYS / 2];
  floats sums[MOST_WIDTH], scores[KEYS], most, total, factor, nothing;
  memset(turned, 0, sizeof *turned * width / 2);
  for (long q = 0; q < count; q++)
    for (long i = 0; i < width / 2; i++) ((pair *)turned[i])[q] = *(const pair *)(query + q * stride + 2 * i);
  for (int v = 0; v < VECTORS; v++) {
    total[v] = nothing[v] = _mm512_setzero_ps();
    most[v] = _mm512_set1_ps(-INFINITY);
  }
  memset(sums, 0, sizeof *sums * width);
  for (long first = 0; first < patches; first += KEYS) {
    long some = patches - first < KEYS ? patches - first : KEYS;
    memset(scores, 0, sizeof scores);
    add_products(some, keys + first * width, width, turned, width / 2, nothing, scores);
    soften(scores, some, scale, weights, most, total, factor);
    add_products(width, values + first * width, KEYS, weights, (some + 1) / 2, factor, sums);
  }
  for (long d = 0; d < width; d++) {
    uint16_t rounded[QUERIES];
    for (int v = 0; v < VECTORS; v++)
      _mm256_storeu_si256((__m256i *)(rounded + 16 * v), (__m256i)_mm512_cvtneps_pbh(_mm512_div_ps(sums[d][v], total[v])));
    for (long q = 0; q < count; q++) out[q * stride + d] = rounded[q];
  }
}

// `keys` and `values` are room for all heads: patches, rounded up to whole blocks of KEYS, times width
// each.
void attend(const uint16_t *query, const uint16_t *key, const uint16_t *value, uint16_t *out, uint16_t *keys,
            uint16_t *values, long pictures, long patches, long heads, long width, float scaling) {
  const long stride = heads * width, room = (patches + KEYS - 1) / KEYS * KEYS * width;
  const long blocks = (patches + QUERIES - 1) / QUERIES, all = pictures * heads;
  const float scale = scaling * 1.44269504f; // 1 / ln 2
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (long head = 0; head < all; head++) {
      long from = head / heads * patches * stride + head % heads * width;
      uint16_t *to_keys = keys + head * room, *to_values = values + head * room;
      memset(to_values + room - KEYS * width, 0, KEYS * width * sizeof *values);
      for (long p = 0; p < patches; p++) {
        memcpy(to_keys + p * width, key + from + p * stride, width * sizeof *keys);
        uint16_t *block = to_values + p / KEYS * KEYS * width + p % KEYS;
        for (long d = 0; d < width; d++) block[d * KEYS] = value[from + p * stride + d];
      }
    }
#pragma omp for schedule(dynamic)
    for (long task = 0; task < all * blocks; task++) {
      long head = task / blocks, first = task % blocks * QUERIES;
      long at = head / heads * patches * stride + head % heads * width + first * stride;
      long count = patches - first < QUERIES ? patches - first : QUERIES;
      attend_block(query + at, out + at, count, stride, keys + head * room, values + head * room, patches, width,
                   scale);
    }
  }
}
