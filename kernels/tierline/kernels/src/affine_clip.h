// Ranges of `affine` that leave outliers out. Counts are integers and sums are taken in a stated order, so that the
// oracle, numpy/affine_clip.py, finds the same ranges.
#pragma once
#include "affine.h"
#include "select.h"

enum { TL_AFFINE_MOST_BINS = 2304, TL_AFFINE_COARSE = 16, TL_AFFINE_CANDIDATES = 136 };

struct tl_affine_sums {
    double count, first, second;  // of the values up to a bin: how many, sum of bins, sum of squared bins
};

// Of the least squared error's search; the ends are levels of the whole range.
TL_INLINE tl_i32 tl_affine_num_bins(tl_i32 steps) { return steps * ((2048 + steps - 1) / steps) + 1; }

// Whether a range is wide enough to be cut into so many bins.
TL_INLINE bool tl_affine_is_wide(float lo, float hi, tl_i32 num_bins) {
    return hi - lo > (float)num_bins * TL_AFFINE_TINY;
}

// Squared error, in bins, of rounding every value to the nearest of steps + 1 even levels from bin lo to bin hi.
TL_INLINE double tl_affine_error(const tl_affine_sums *before, tl_i32 num_bins, tl_i32 lo, tl_i32 hi, tl_i32 steps) {
    double step = (double)(hi - lo) / (double)steps, error = 0.0;
    tl_i32 start = 0;
    for (tl_i32 level = 0; level <= steps; ++level) {
        double place = (double)lo + (double)level * step;
        tl_i32 end = level == steps ? num_bins : (tl_i32)(place + step * 0.5) + 1;
        double count = before[end].count - before[start].count, first = before[end].first - before[start].first;
        error += (before[end].second - before[start].second) - 2.0 * place * first + place * place * count;
        start = end;
    }
    return error;
}

// Ends of the candidate of a number below TL_AFFINE_CANDIDATES: all ranges between 16ths of the whole, by their low ends
// and then by their high ones.
TL_INLINE void tl_affine_candidate(tl_i32 number, tl_i32 num_bins, tl_i32 *lo, tl_i32 *hi) {
    tl_i32 i = 0;
    for (; number >= TL_AFFINE_COARSE - i; ++i) number -= TL_AFFINE_COARSE - i;
    *lo = (num_bins - 1) * i / TL_AFFINE_COARSE;
    *hi = (num_bins - 1) * (i + 1 + number) / TL_AFFINE_COARSE;
}

// Narrows [lo, hi] to the range of least squared error: from the best candidate, whose errors are given, its ends move
// by halving steps.
TL_INLINE void tl_affine_narrow(const tl_affine_sums *before, const double *errors, tl_i32 steps, float *lo, float *hi) {
    const tl_i32 num_bins = tl_affine_num_bins(steps);
    tl_i32 best_lo = 0, best_hi = num_bins - 1;
    double best = errors[TL_AFFINE_COARSE - 1];  // of the whole range
    for (tl_i32 number = 0; number < TL_AFFINE_CANDIDATES; ++number)
        if (errors[number] < best) best = errors[number], tl_affine_candidate(number, num_bins, &best_lo, &best_hi);
    for (tl_i32 move = num_bins / (2 * TL_AFFINE_COARSE); move; move /= 2)
        for (bool moved = true; moved;) {
            moved = false;
            for (tl_i32 way = 0; way < 4; ++way) {  // low end down and up, high end down and up
                tl_i32 by = way % 2 ? move : -move;
                tl_i32 from = best_lo + (way < 2 ? by : 0), to = best_hi + (way < 2 ? 0 : by);
                if (from < 0 || to >= num_bins || from >= to) continue;
                double error = tl_affine_error(before, num_bins, from, to, steps);
                if (error < best) best = error, best_lo = from, best_hi = to, moved = true;
            }
        }
    float low = *lo, width = (*hi - low) / (float)(num_bins - 1);
    if (best_hi < num_bins - 1) *hi = low + (float)best_hi * width;
    if (best_lo > 0) *lo = low + (float)best_lo * width;
}

#if !TL_GPU
template <int N> static tl_i64 tl_affine_total(const tl_u32 (&count)[4][N], tl_i64 bin) {
    return (tl_i64)count[0][bin] + count[1][bin] + count[2][bin] + count[3][bin];
}

// Key of the value that has `rank` smaller or equal ones before it in sorted order.
TL_INLINE tl_i32 tl_affine_ranked(const float *row, tl_i64 num_values, tl_i64 rank) {
    const auto key_of = [](float x) __attribute__((always_inline)) { return (tl_u32)tl_key(x) ^ 0x80000000u; };
    return (tl_i32)(tl_select(row, num_values, rank, key_of).key ^ 0x80000000u);
}

static void tl_affine_least_error(const float *row, tl_i64 num_values, tl_i32 steps, float *lo, float *hi) {
    const tl_i32 num_bins = tl_affine_num_bins(steps);
    if (!tl_affine_is_wide(*lo, *hi, num_bins)) return;
    const float low = *lo, inverse = (float)(num_bins - 1) / (*hi - low);
    tl_u32 count[4][TL_AFFINE_MOST_BINS] = {{0}};  // see tl_select_by
    for (tl_i64 first = 0; first < num_values; first += TL_TILE) {
        tl_i64 num = num_values - first < TL_TILE ? num_values - first : TL_TILE;
        tl_u32 bin[TL_TILE];
        for (tl_i64 k = 0; k < num; ++k) bin[k] = tl_nearest((row[first + k] - low) * inverse);
        for (tl_i64 k = 0; k < num; ++k) ++count[k & 3][bin[k]];
    }
    tl_affine_sums before[TL_AFFINE_MOST_BINS + 1] = {{0.0, 0.0, 0.0}};
    for (tl_i32 k = 0; k < num_bins; ++k) {
        double here = (double)tl_affine_total(count, k);
        before[k + 1].count = before[k].count + here;
        before[k + 1].first = before[k].first + here * k;
        before[k + 1].second = before[k].second + here * ((double)k * k);
    }
    double errors[TL_AFFINE_CANDIDATES];
    for (tl_i32 number = 0; number < TL_AFFINE_CANDIDATES; ++number) {
        tl_i32 from, to;
        tl_affine_candidate(number, num_bins, &from, &to);
        errors[number] = tl_affine_error(before, num_bins, from, to, steps);
    }
    tl_affine_narrow(before, errors, steps, lo, hi);
}
#endif
