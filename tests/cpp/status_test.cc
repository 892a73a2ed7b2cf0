// SPDX-License-Identifier: Apache-2.0
#include "sparsekern/status.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "sparsekern/version.h"

namespace sparsekern {
namespace {

Status Twice(const Status& first, bool* reached) {
  SPARSEKERN_RETURN_IF_ERROR(first);
  *reached = true;
  return Status::Ok();
}

TEST(StatusTest, CarriesCodeAndMessage) {
  EXPECT_TRUE(Status().ok());
  EXPECT_TRUE(Status::Ok().message().empty());
  const Status status = Status::InvalidValue("op: n must be positive, got -1");
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
  EXPECT_EQ(status.message(), "op: n must be positive, got -1");
  EXPECT_EQ(Status::InvalidType("t").code(), StatusCode::kInvalidType);
  EXPECT_EQ(Status::Unimplemented("u").code(), StatusCode::kUnimplemented);
  EXPECT_EQ(Status::OutOfMemory("m").code(), StatusCode::kOutOfMemory);
  EXPECT_EQ(Status::Internal("i").code(), StatusCode::kInternal);
}

TEST(StatusTest, ReturnIfErrorStopsAtTheFirst) {
  bool reached = false;
  EXPECT_EQ(Twice(Status::Internal("x"), &reached).message(), "x");
  EXPECT_FALSE(reached);
  EXPECT_TRUE(Twice(Status::Ok(), &reached).ok());
  EXPECT_TRUE(reached);
}

TEST(VersionTest, IsThreeNumbers) {
  const std::string version = Version();
  EXPECT_EQ(std::count(version.begin(), version.end(), '.'), 2) << version;
  EXPECT_EQ(version.find_first_not_of("0123456789."), std::string::npos) << version;
}

}  // namespace
}  // namespace sparsekern
