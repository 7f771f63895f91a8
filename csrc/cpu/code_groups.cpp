#include "cpu/code_groups.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/parallel.h"

namespace lpkernel {

namespace {

constexpr int ROUNDS = 4;               // in which the middles of groups are moved
constexpr std::size_t MOST_SEEN = 256;  // codes of a group that are looked at for its middle

// Divides codes into groups around middles.
class Division {
  public:
    Division(const std::int32_t* table, std::int64_t codes, std::vector<int> members, const std::vector<float>& weights)
        : table_(table), codes_(codes), members_(std::move(members)), weights_(weights), groups_(members_.size()) {}

    // The number of the group of each member, below `groups`.
    const std::vector<int>& into(int groups) {
        spread(groups);
        assign();
        for (int round = 0; round < ROUNDS; ++round) {
            poll();
            centre();
            assign();
        }
        return groups_;
    }

  private:
    float apart(int a, int b) const { return static_cast<float>(table_[a * codes_ + b]); }

    // Middles: first the most frequent code, then in turn the one that is farthest from those, weighted by the root of
    // its frequency.
    void spread(int groups) {
        const auto rarer = [&](int a, int b) { return weights_[a] < weights_[b]; };
        middles_.assign(1, *std::max_element(members_.begin(), members_.end(), rarer));
        std::vector<float> least(members_.size(), std::numeric_limits<float>::infinity());
        while (static_cast<int>(middles_.size()) < groups) {
            std::size_t next = 0;
            float most = -1.0f;
            for (std::size_t i = 0; i < members_.size(); ++i) {
                least[i] = std::min(least[i], apart(middles_.back(), members_[i]));
                const float score = least[i] * std::sqrt(weights_[members_[i]]);
                if (score <= most) continue;
                most = score;
                next = i;
            }
            middles_.push_back(members_[next]);
        }
    }

    void assign() {
        std::vector<float> least(members_.size(), std::numeric_limits<float>::infinity());
        for (std::size_t group = 0; group < middles_.size(); ++group) {
            for (std::size_t i = 0; i < members_.size(); ++i) {
                const float distance = apart(middles_[group], members_[i]);
                if (distance >= least[i]) continue;
                least[i] = distance;
                groups_[i] = static_cast<int>(group);
            }
        }
    }

    // Each middle becomes the code of its group that is nearest to the others, weighted by their frequency.
    void centre() {
        std::vector<std::vector<int>> of(middles_.size());
        for (std::size_t i = 0; i < members_.size(); ++i) of[groups_[i]].push_back(members_[i]);
        for (std::size_t group = 0; group < middles_.size(); ++group) {
            const std::vector<int>& mine = of[group];
            const std::size_t step = 1 + mine.size() / MOST_SEEN;
            float least = std::numeric_limits<float>::infinity();
            for (std::size_t i = 0; i < mine.size(); i += step) {
                float sum = 0.0f;
                for (std::size_t j = 0; j < mine.size(); j += step) sum += apart(mine[i], mine[j]) * weights_[mine[j]];
                if (sum >= least) continue;
                least = sum;
                middles_[group] = mine[i];
            }
        }
    }

    const std::int32_t* table_;
    std::int64_t codes_;
    std::vector<int> members_;
    const std::vector<float>& weights_;
    std::vector<int> groups_, middles_;
};

}  // namespace

CodeGroups::CodeGroups(const std::int32_t* table, int codes, const std::vector<std::int64_t>& counts)
    : of(static_cast<std::size_t>(codes)), nearest(static_cast<std::size_t>(codes) * 2 * GROUPS) {
    const std::vector<float> weights(counts.begin(), counts.end());
    std::vector<int> all(static_cast<std::size_t>(codes));
    std::iota(all.begin(), all.end(), 0);
    const std::vector<int> groups = Division(table, codes, all, weights).into(GROUPS);
    std::vector<std::vector<int>> members(GROUPS);
    for (int code = 0; code < codes; ++code) members[groups[code]].push_back(code);
    for (int group = 0; group < GROUPS; ++group) {
        if (members[group].empty()) continue;
        Division division(table, codes, members[group], weights);
        const std::vector<int>& halves = division.into(2);
        for (std::size_t i = 0; i < members[group].size(); ++i) {
            of[members[group][i]] = static_cast<std::uint8_t>(halves[i] * GROUPS + group);
        }
    }
    for (std::int64_t code = 0; code < codes; ++code) {
        const std::int32_t* row = table + code * codes;
        std::int32_t* least = nearest.data() + code * 2 * GROUPS;
        std::fill_n(least, 2 * GROUPS, std::numeric_limits<std::int32_t>::max());
        for (int other = 0; other < codes; ++other) least[of[other]] = std::min(least[of[other]], row[other]);
    }
}

}  // namespace lpkernel
