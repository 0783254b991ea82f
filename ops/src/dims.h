// Sizes of one call and the shapes of its levels: plain structs shared by host and device code.
#pragma once

#include <cstdint>

namespace deformable_detr {

// Levels are passed by value to every kernel, in a table of fixed size.
constexpr int kMaxLevels = 8;

struct Level {
  int32_t height;
  int32_t width;
  int64_t start;  // index of the level's first cell among the S cells of value
};

struct LevelTable {
  int32_t count;  // L
  Level levels[kMaxLevels];
};

// Letters as in the paper: N images, S cells, M heads, D channels per head, Q queries, L levels
// and P points; R is the last size of the reference points, 2 or 4, and 0 in the plain operator.
struct Dims {
  int64_t N, S, M, D, Q, L, P, R;
};

}  // namespace deformable_detr
