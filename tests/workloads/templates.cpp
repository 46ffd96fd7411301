// Heavy on the compiler: deep and wide template instantiation plus a good part of the standard library.
// -DDEPTH=N sets how much (default 14).
#include <algorithm>
#include <array>
#include <functional>
#include <map>
#include <memory>
#include <regex>
#include <string>
#include <tuple>
#include <unordered_map>
#include <variant>
#include <vector>

#ifndef DEPTH
#define DEPTH 14
#endif

template <int N> struct Tag {
  static constexpr int value = N;
  std::array<int, N % 7 + 1> data{};
};

template <int N> struct Stage {
  std::map<std::string, std::vector<Tag<N>>> rows;
  std::variant<int, std::string, Tag<N>, std::unique_ptr<Tag<N>>> any;
  int run(int seed) {
    auto &list = rows[std::to_string(seed * N)];
    list.emplace_back();
    std::function<int(const Tag<N> &)> measure = [seed](const Tag<N> &tag) { return tag.data[0] + seed + Tag<N>::value; };
    std::sort(list.begin(), list.end(), [&](const Tag<N> &a, const Tag<N> &b) { return measure(a) < measure(b); });
    any = list.front();
    int here = std::visit(
        [](auto &v) -> int {
          using T = std::decay_t<decltype(v)>;
          if constexpr (std::is_same_v<T, Tag<N>>) return v.data[0];
          else if constexpr (std::is_same_v<T, int>) return v;
          else return 0;
        },
        any);
    return here + Stage<N - 1>{}.run(seed + measure(list.front()));
  }
};
template <> struct Stage<0> {
  int run(int seed) { return seed; }
};

int main(int argc, char **) {
  std::regex pattern("a(b|c)*d");
  return Stage<DEPTH>{}.run(argc) + static_cast<int>(std::regex_match("abcd", pattern));
}
