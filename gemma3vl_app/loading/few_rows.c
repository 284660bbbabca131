// Products of a few rows of float32 with a matrix of bfloat16 or int8, as writing a token needs them.
//
// out[m][n] = sum over k of x[m][k] * weight[n][k], summed in float32; the scales of int8 come later.
// Each weight is read from memory once and widened in a register: a bfloat16 is the upper half of a
// float32. And 4-bit weights to float32, for more rows than that. Built by compiled.py.

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 8    // output features that one thread takes at a time: they stay in its cache
#define AHEAD 4096 // bytes to be fetched early: 9 to 14 GB/s of the 16 that memory gave
#define FETCH(from) _mm_prefetch((const char *)(from) + AHEAD, _MM_HINT_T0)

#if defined(__AVX512F__)
#define LANES 16
typedef __m512 floats;
#define ZERO() _mm512_setzero_ps()
#define LOAD(from) _mm512_loadu_ps(from)
#define ADD_PRODUCT(a, b, sum) _mm512_fmadd_ps(a, b, sum)
#define SUM(v) _mm512_reduce_add_ps(v)
static inline floats widen_16(const uint16_t *from) {
  __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
static inline floats widen_8(const int8_t *from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
}
#else
#define LANES 8
typedef __m256 floats;
#define ZERO() _mm256_setzero_ps()
#define LOAD(from) _mm256_loadu_ps(from)
#define ADD_PRODUCT(a, b, sum) _mm256_fmadd_ps(a, b, sum)
static inline float SUM(floats v) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
static inline floats widen_16(const uint16_t *from) {
  __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}
static inline floats widen_8(const int8_t *from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
}
#endif

static inline float widen_one_16(uint16_t half) {
  uint32_t word = (uint32_t)half << 16;
  float result;
  memcpy(&result, &word, sizeof result);
  return result;
}
static inline float widen_one_8(int8_t byte) { return byte; }

// M rows with two output features at once: M + 2 loads serve 2 M products. A last feature without a
// partner is its own: it is written twice to the same place.
#define TILE(M, BITS, WEIGHT)                                                                        \
  static void tile_##M##_##BITS(const float *x, const WEIGHT *first, const WEIGHT *second,           \
                                long inputs, float *out_first, float *out_second, long stride) {     \
    floats a[M], b[M];                                                                               \
    for (int m = 0; m < M; m++) a[m] = b[m] = ZERO();                                                \
    long k = 0;                                                                                      \
    for (; k + LANES <= inputs; k += LANES) {                                                        \
      FETCH(first + k), FETCH(second + k); /* past the matrix's end it does nothing */               \
      floats of_first = widen_##BITS(first + k), of_second = widen_##BITS(second + k);               \
      for (int m = 0; m < M; m++) {                                                                  \
        floats row = LOAD(x + m * inputs + k);                                                       \
        a[m] = ADD_PRODUCT(row, of_first, a[m]);                                                     \
        b[m] = ADD_PRODUCT(row, of_second, b[m]);                                                    \
      }                                                                                              \
    }                                                                                                \
    for (int m = 0; m < M; m++) {                                                                    \
      float sum_first = SUM(a[m]), sum_second = SUM(b[m]);                                           \
      for (long rest = k; rest < inputs; rest++) {                                                   \
        sum_first += x[m * inputs + rest] * widen_one_##BITS(first[rest]);                           \
        sum_second += x[m * inputs + rest] * widen_one_##BITS(second[rest]);                         \
      }                                                                                              \
      out_first[m * stride] = sum_first;                                                             \
      out_second[m * stride] = sum_second;                                                           \
    }                                                                                                \
  }

#define MULTIPLY(BITS, WEIGHT)                                                                       \
  TILE(1, BITS, WEIGHT)                                                                              \
  TILE(2, BITS, WEIGHT)                                                                              \
  TILE(4, BITS, WEIGHT)                                                                              \
  void multiply_##BITS(const float *x, const WEIGHT *weight, float *out, long rows, long outputs,    \
                       long inputs) {                                                                \
    _Pragma("omp parallel for schedule(static)")                                                     \
    for (long block = 0; block < outputs; block += BLOCK) {                                          \
      long stop = block + BLOCK < outputs ? block + BLOCK : outputs;                                 \
      for (long m = 0, taken; m < rows; m += taken) {                                                \
        long left = rows - m;                                                                        \
        taken = left >= 4 ? 4 : left >= 2 ? 2 : 1;                                                   \
        for (long n = block; n < stop; n += 2) {                                                     \
          long partner = n + 1 < stop ? n + 1 : n;                                                   \
          const float *from = x + m * inputs;                                                        \
          const WEIGHT *first = weight + n * inputs, *second = weight + partner * inputs;            \
          float *to = out + m * outputs;                                                             \
          if (taken == 4) tile_4_##BITS(from, first, second, inputs, to + n, to + partner, outputs); \
          else if (taken == 2)                                                                       \
            tile_2_##BITS(from, first, second, inputs, to + n, to + partner, outputs);               \
          else tile_1_##BITS(from, first, second, inputs, to + n, to + partner, outputs);            \
        }                                                                                            \
      }                                                                                              \
    }                                                                                                \
  }

MULTIPLY(16, uint16_t)
MULTIPLY(8, int8_t)

// Turn 16 x 16 bytes, a row in each register. One round shuffles the rows of both halves into one
// another, as two halves of a pack of cards; after four rounds rows are columns.
static inline void transpose(__m128i rows[16]) {
  for (int round = 0; round < 4; round++) {
    __m128i shuffled[16];
    for (int i = 0; i < 8; i++) {
      shuffled[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + 8]);
      shuffled[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + 8]);
    }
    memcpy(rows, shuffled, sizeof shuffled);
  }
}

// The 16 weights of one row that these codes stand for.
static inline void widen_codes(__m128i codes, const uint16_t *scale_zero, float *to) {
  float scale = widen_one_16(scale_zero[0]), least = widen_one_16(scale_zero[1]) - 8 * scale;
  __m256 scales = _mm256_set1_ps(scale), leasts = _mm256_set1_ps(least);
  __m256 first = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
  __m256 second = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8)));
  _mm256_storeu_ps(to, _mm256_fmadd_ps(first, scales, leasts));
  _mm256_storeu_ps(to + 8, _mm256_fmadd_ps(second, scales, leasts));
}

// Widen 4-bit weights in the order of int4.py, where `block` rows lie together: for each input half as many
// bytes, each with the codes of two rows that are half a block apart. Scales and zeros are bfloat16
// [inputs / 32][of all rows][2]; `rows` is a multiple of `block`, this of 32, `inputs` of 32.
void widen_4(const uint8_t *packed, const uint16_t *scales_zeros, float *out, long rows, long inputs, long block,
             long of_all) {
  const __m128i low = _mm_set1_epi8(15);
#pragma omp parallel for schedule(static)
  for (long first = 0; first < rows; first += block) {
    for (long lane = 0; lane < block / 2; lane += 16) {
      const uint8_t *codes = packed + first * inputs / 2 + lane;
      for (long k = 0; k < inputs; k += 16) {
        __m128i bytes[16];
        for (int i = 0; i < 16; i++) bytes[i] = _mm_loadu_si128((const __m128i *)(codes + (k + i) * block / 2));
        transpose(bytes);
        const uint16_t *pairs = scales_zeros + 2 * (k / 32 * of_all + first + lane);
        float *to = out + (first + lane) * inputs + k;
        for (int i = 0; i < 16; i++) {
          long partner = i + block / 2;
          widen_codes(_mm_and_si128(bytes[i], low), pairs + 2 * i, to + i * inputs);
          __m128i high = _mm_and_si128(_mm_srli_epi16(bytes[i], 4), low);
          widen_codes(high, pairs + 2 * partner, to + partner * inputs);
        }
      }
    }
  }
}
