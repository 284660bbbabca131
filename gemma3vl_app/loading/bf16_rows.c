// Products of a few rows of bfloat16 with a matrix of bfloat16, int8 or 4 bits, for processors with AVX512-BF16.
//
// out[m][n] = sum over k of x[m][k] * weight[n][k], summed in float32 and rounded once. Each weight is read
// from memory once for up to 8 rows; with one row memory is what it waits for. Built by compiled_bf16.py.

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define LANES 16   // float32 numbers in a vector
#define MOST_ROWS 8 // at once: their sums stay in registers
#define GROUP 32   // 4-bit weights that share a scale
#define AHEAD 4096 // bytes of 4-bit weights to be fetched early

typedef uint16_t bf16;

static inline __m512bh load_bf16(const bf16 *from) { return (__m512bh)_mm512_loadu_si512(from); }
static inline __m512 widen(__m256i words) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}
static inline __m512 load_wide(const bf16 *from) { return widen(_mm256_loadu_si256((const __m256i *)from)); }
static inline __m512 int8_to_float(const int8_t *from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
}

// 32 weights as bfloat16, from where they lie; the last of a row may be fewer.
static inline __m512bh weights_16(const bf16 *from) { return load_bf16(from); }
static inline __m512bh last_16(const bf16 *from, long count) {
  return (__m512bh)_mm512_maskz_loadu_epi16((__mmask32)((1ull << count) - 1), from);
}
static inline __m512bh weights_8(const int8_t *from) { // every int8 is a bfloat16
  return _mm512_cvtne2ps_pbh(int8_to_float(from + LANES), int8_to_float(from));
}
static inline __m512bh last_8(const int8_t *from, long count) {
  int8_t padded[32] = {0};
  memcpy(padded, from, count);
  return weights_8(padded);
}

// M rows with F output features at once; sums to out[m * stride + f]. The features after them are fetched early:
// with several rows at once memory is fast only so.
#define TILE(M, F, BITS, WEIGHT, SUFFIX)                                                                       \
  static void tile_##M##_##BITS##SUFFIX(const bf16 *x, const WEIGHT *weight, long inputs, float *out,          \
                                        long stride) {                                                         \
    __m512 sums[M][F];                                                                                         \
    for (int m = 0; m < M; m++)                                                                                \
      for (int f = 0; f < F; f++) sums[m][f] = _mm512_setzero_ps();                                            \
    long k = 0;                                                                                                \
    for (; k + 32 <= inputs; k += 32) {                                                                        \
      __m512bh of[F];                                                                                          \
      for (int f = 0; f < F; f++) {                                                                            \
        of[f] = weights_##BITS(weight + f * inputs + k);                                                       \
        if (F > 1) _mm_prefetch((const char *)(weight + (F + f) * inputs + k), _MM_HINT_T0);                   \
      }                                                                                                        \
      for (int m = 0; m < M; m++) {                                                                            \
        __m512bh row = load_bf16(x + m * inputs + k);                                                          \
        for (int f = 0; f < F; f++) sums[m][f] = _mm512_dpbf16_ps(sums[m][f], row, of[f]);                     \
      }                                                                                                        \
    }                                                                                                          \
    if (k < inputs)                                                                                            \
      for (int m = 0; m < M; m++)                                                                              \
        for (int f = 0; f < F; f++)                                                                            \
          sums[m][f] = _mm512_dpbf16_ps(sums[m][f], last_16(x + m * inputs + k, inputs - k),                   \
                                        last_##BITS(weight + f * inputs + k, inputs - k));                     \
    for (int m = 0; m < M; m++)                                                                                \
      for (int f = 0; f < F; f++) out[m * stride + f] = _mm512_reduce_add_ps(sums[m][f]);                      \
  }

static inline __mmask16 first_lanes(long count) { return (__mmask16)((1u << count) - 1); }
static inline void store_bf16(bf16 *to, __m512 values, long count) {
  _mm256_mask_storeu_epi16(to, first_lanes(count), (__m256i)_mm512_cvtneps_pbh(values));
}

#define FEATURES 4 // that share what is loaded of the rows
#define TILES(BITS, WEIGHT)                                                                                    \
  TILE(1, FEATURES, BITS, WEIGHT, )                                                                            \
  TILE(2, FEATURES, BITS, WEIGHT, )                                                                            \
  TILE(3, FEATURES, BITS, WEIGHT, )                                                                            \
  TILE(4, FEATURES, BITS, WEIGHT, )                                                                            \
  TILE(5, FEATURES, BITS, WEIGHT, )                                                                            \
  TILE(6, FEATURES, BITS, WEIGHT, )                                                                            \
  TILE(7, FEATURES, BITS, WEIGHT, )                                                                            \
  TILE(8, FEATURES, BITS, WEIGHT, )                                                                            \
  TILE(1, 1, BITS, WEIGHT, _alone)                                                                             \
  typedef void (*tile_##BITS)(const bf16 *, const WEIGHT *, long, float *, long);                              \
  static const tile_##BITS tiles_##BITS[] = {tile_1_##BITS, tile_2_##BITS, tile_3_##BITS, tile_4_##BITS,       \
                                             tile_5_##BITS, tile_6_##BITS, tile_7_##BITS, tile_8_##BITS};

#define MULTIPLY(BITS, WEIGHT)                                                                                 \
  TILES(BITS, WEIGHT)                                                                                          \
  void multiply_##BITS(const bf16 *x, const WEIGHT *weight, const bf16 *scales, bf16 *out, long rows,          \
                       long outputs, long inputs) {                                                            \
    _Pragma("omp parallel for schedule(static)") for (long first = 0; first < outputs; first += LANES) {       \
      long count = outputs - first < LANES ? outputs - first : LANES;                                          \
      __mmask16 lanes = first_lanes(count);                                                                    \
      __m512 scale = _mm512_set1_ps(1);                                                                        \
      if (scales) scale = widen(_mm256_maskz_loadu_epi16(lanes, scales + first));                              \
      for (long m = 0, taken; m < rows; m += taken) {                                                          \
        float sums[MOST_ROWS][LANES];                                                                          \
        taken = rows - m < MOST_ROWS ? rows - m : MOST_ROWS;                                                   \
        const bf16 *some = x + m * inputs;                                                                     \
        const WEIGHT *from = weight + first * inputs;                                                          \
        long n = 0;                                                                                            \
        for (; n + FEATURES <= count; n += FEATURES)                                                           \
          tiles_##BITS[taken - 1](some, from + n * inputs, inputs, &sums[0][n], LANES);                        \
        for (; n < count; n++) /* the odd rest of a matrix */                                                  \
          for (long i = 0; i < taken; i++)                                                                     \
            tile_1_##BITS##_alone(some + i * inputs, from + n * inputs, inputs, &sums[i][n], LANES);           \
        for (long i = 0; i < taken; i++)                                                                       \
          store_bf16(out + (m + i) * outputs + first,                                                          \
                     _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, sums[i]), scale), count);                      \
      }                                                                                                        \
    }                                                                                                          \
  }

MULTIPLY(16, bf16)
MULTIPLY(8, int8_t)

// --- 4 bits ---
//
// 16 output features lie together, as lanes. Of each group of 32 inputs they have 4 vectors of bytes: byte j of a
// lane holds in its low half the code of input 8 c + j, in its high half that of input 8 c + 4 + j, of vector c.
// Then 16 scales and 16 zeros, elsewhere. A weight is (code - 8) * scale + zero.
//
// Rows become int8 with a scale for each of their groups, so that whole numbers are multiplied (VNNI): that errs
// by 0.5 %, where rounding the weights to 4 bits erred by 8.

// Make one group of a row whole numbers. `sum` is -8 times their sum; scale and scaled sum are float32.
static void quantise_group(const bf16 *x, int8_t *to, int32_t *sum, float *scale, float *scaled_sum) {
  __m512 a = load_wide(x), b = load_wide(x + LANES);
  float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
  // What is not finite makes the scale so, and all that depends on it.
  float not_finite = _mm512_reduce_add_ps(_mm512_mul_ps(_mm512_add_ps(a, b), _mm512_setzero_ps()));
  __m512 inverse = _mm512_set1_ps(largest > 0 ? 127 / largest : 0);
  __m512i of_a = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), of_b = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
  _mm_storeu_si128((__m128i *)to, _mm512_cvtsepi32_epi8(of_a));
  _mm_storeu_si128((__m128i *)(to + LANES), _mm512_cvtsepi32_epi8(of_b));
  int32_t total = _mm512_reduce_add_epi32(_mm512_add_epi32(of_a, of_b));
  *sum = -8 * total;
  *scale = largest / 127 + not_finite;
  *scaled_sum = *scale * (float)total;
}

typedef struct {
  int8_t *values;     // [rows][inputs]
  int32_t *sums;      // [rows][groups], and so the next
  float *scales, *scaled_sums;
} Rows;

static inline __m512i four_of_all_lanes(const int8_t *from) {
  int32_t four;
  memcpy(&four, from, sizeof four);
  return _mm512_set1_epi32(four);
}

#define TILE_4(M)                                                                                              \
  static void tile_##M##_4(Rows x, long m0, const uint8_t *codes, const bf16 *scales_zeros, long inputs,       \
                           __m512 *out) {                                                                      \
    const __m512i low = _mm512_set1_epi8(15);                                                                  \
    long groups = inputs / GROUP;                                                                              \
    __m512 sums[M];                                                                                            \
    for (int m = 0; m < M; m++) sums[m] = _mm512_setzero_ps();                                                 \
    for (long g = 0; g < groups; g++) {                                                                        \
      __m512i whole[M];                                                                                        \
      for (int m = 0; m < M; m++) whole[m] = _mm512_set1_epi32(x.sums[(m0 + m) * groups + g]);                 \
      for (int c = 0; c < 4; c++) {                                                                            \
        if (M > 1) _mm_prefetch((const char *)codes + (g * 4 + c) * 64 + AHEAD, _MM_HINT_T0);                  \
        __m512i bytes = _mm512_loadu_si512(codes + (g * 4 + c) * 64);                                          \
        __m512i first = _mm512_and_si512(bytes, low);                                                          \
        __m512i second = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);                                   \
        for (int m = 0; m < M; m++) {                                                                          \
          const int8_t *row = x.values + (m0 + m) * inputs + g * GROUP + c * 8;                                \
          whole[m] = _mm512_dpbusd_epi32(whole[m], first, four_of_all_lanes(row));                             \
          whole[m] = _mm512_dpbusd_epi32(whole[m], second, four_of_all_lanes(row + 4));                        \
        }                                                                                                      \
      }                                                                                                        \
      __m512 scale = load_wide(scales_zeros + g * 2 * LANES);                                                  \
      __m512 zero = load_wide(scales_zeros + g * 2 * LANES + LANES);                                           \
      for (int m = 0; m < M; m++) {                                                                            \
        long at = (m0 + m) * groups + g;                                                                       \
        __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(whole[m]), scale);                                    \
        sums[m] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(x.scales[at]), sums[m]);                              \
        sums[m] = _mm512_fmadd_ps(zero, _mm512_set1_ps(x.scaled_sums[at]), sums[m]);                           \
      }                                                                                                        \
    }                                                                                                          \
    for (int m = 0; m < M; m++) out[m] = sums[m];                                                              \
  }
TILE_4(1)
TILE_4(2)
TILE_4(3)
TILE_4(4)
TILE_4(5)
TILE_4(6)
TILE_4(7)
TILE_4(8)
typedef void (*tile_4)(Rows, long, const uint8_t *, const bf16 *, long, __m512 *);
static const tile_4 tiles_4[] = {tile_1_4, tile_2_4, tile_3_4, tile_4_4, tile_5_4, tile_6_4, tile_7_4, tile_8_4};

// `scratch` has room for rows * (inputs + 3 * 4 * inputs / 32) bytes; outputs are a multiple of 16, inputs of 32.
void multiply_4(const bf16 *x, const uint8_t *codes, const bf16 *scales_zeros, bf16 *out, uint8_t *scratch, long rows,
                long outputs, long inputs) {
  long groups = inputs / GROUP;
  Rows whole = {.sums = (int32_t *)scratch};
  whole.scales = (float *)(whole.sums + rows * groups);
  whole.scaled_sums = whole.scales + rows * groups;
  whole.values = (int8_t *)(whole.scaled_sums + rows * groups);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (long i = 0; i < rows * groups; i++)
      quantise_group(x + i * GROUP, whole.values + i * GROUP, whole.sums + i, whole.scales + i, whole.scaled_sums + i);
#pragma omp for schedule(static)
    for (long first = 0; first < outputs; first += LANES) {
      const uint8_t *of_codes = codes + first * inputs / 2;
      const bf16 *of_scales = scales_zeros + first * groups * 2;
      for (long m = 0, taken; m < rows; m += taken) {
        __m512 sums[MOST_ROWS];
        taken = rows - m < MOST_ROWS ? rows - m : MOST_ROWS;
        tiles_4[taken - 1](whole, m, of_codes, of_scales, inputs, sums);
        for (long i = 0; i < taken; i++) store_bf16(out + (m + i) * outputs + first, sums[i], LANES);
      }
    }
  }
}
