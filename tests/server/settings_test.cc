#include "server/settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace photon {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

class SettingsTest : public ::testing::Test {
 protected:
  SettingsTest() {
    app_.add_option("--model", model_, "Directory")->envname("PHOTON_MODEL")->group("Model");
    app_.add_option("--max-rows", max_rows_, "Rows")
        ->envname("PHOTON_MAX_ROWS")
        ->group("Engine")
        ->capture_default_str();
    app_.add_option("--timeout", timeout_, "Seconds")
        ->envname("PHOTON_TIMEOUT")
        ->group("Engine")
        ->capture_default_str();
    app_.add_flag("--insecure", insecure_, "Plaintext")
        ->envname("PHOTON_INSECURE")
        ->group("Engine");
  }

  void TearDown() override { std::filesystem::remove(path_); }

  std::string WriteFile(const std::string& text) {
    std::ofstream(path_) << text;
    return path_;
  }

  std::vector<std::string> Read(const std::vector<std::string>& arguments,
                                const std::map<std::string, std::string>& environment = {}) {
    return settings_.Read(arguments, environment);
  }

  const std::string path_ = ::testing::TempDir() + "settings_test_" +
                            ::testing::UnitTest::GetInstance()->current_test_info()->name() +
                            ".toml";
  std::string model_;
  int max_rows_ = 64;
  double timeout_ = 1.5;
  bool insecure_ = false;
  CLI::App app_;
  Settings settings_{&app_};
};

TEST_F(SettingsTest, AFlagGoesBeforeTheEnvironmentBeforeTheFileBeforeTheDefault) {
  const std::string path = WriteFile("max-rows = 1\nmodel = 'file'\ntimeout = 2.5\n");
  EXPECT_THAT(Read({"--config", path, "--max-rows", "3"},
                   {{"PHOTON_MAX_ROWS", "2"}, {"PHOTON_MODEL", "environment"}}),
              IsEmpty());
  EXPECT_EQ(max_rows_, 3);
  EXPECT_EQ(model_, "environment");
  EXPECT_EQ(timeout_, 2.5);
  EXPECT_FALSE(insecure_);
  EXPECT_EQ(settings_.CalledBy("max-rows"), "--max-rows");
  EXPECT_EQ(settings_.CalledBy("model"), "PHOTON_MODEL");
  EXPECT_EQ(settings_.CalledBy("timeout"), path + ":3: timeout");
  EXPECT_TRUE(settings_.is_changed("timeout"));
  EXPECT_FALSE(settings_.is_changed("insecure"));
}

TEST_F(SettingsTest, ASettingThatIsGivenItsDefaultIsNotChanged) {
  EXPECT_THAT(Read({"--max-rows", "64", "--timeout", "2"}), IsEmpty());
  EXPECT_FALSE(settings_.is_changed("max-rows"));
  EXPECT_TRUE(settings_.is_changed("timeout"));
}

TEST_F(SettingsTest, TheFileMayBeNamedInTheEnvironment) {
  EXPECT_THAT(Read({}, {{"PHOTON_CONFIG", WriteFile("max_rows = 9")}}), IsEmpty());
  EXPECT_EQ(max_rows_, 9);
}

TEST_F(SettingsTest, SwitchesCanBeSetEitherWayEverywhere) {
  const std::string path = WriteFile("insecure = true");
  EXPECT_THAT(Read({"--config=" + path, "--insecure=false"}), IsEmpty());
  EXPECT_FALSE(insecure_);
}

TEST_F(SettingsTest, ASwitchNeedsNoValue) {
  EXPECT_THAT(Read({"--insecure", "--max_rows=7"}), IsEmpty());
  EXPECT_TRUE(insecure_);
  EXPECT_EQ(max_rows_, 7);
}

TEST_F(SettingsTest, EveryProblemOfEveryPlaceIsNamedAtOnce) {
  const std::string path = WriteFile("max-rows = 'many'\nmax-row = 1\n");
  EXPECT_THAT(Read({"--config", path, "--timeout", "soon", "--modle", "x", "--insecure=perhaps"},
                   {{"PHOTON_MAX_ROWS", "1.5"}, {"PHOTON_TIMEUOT", "1"}}),
              UnorderedElementsAre(
                  "--modle: there is no such flag; did you mean --model?",
                  "PHOTON_TIMEUOT: there is no such variable; did you mean PHOTON_TIMEOUT?",
                  path + ":2: max-row: there is no such setting; did you mean max-rows?",
                  path + ":1: max-rows: expected a number, got many",
                  "PHOTON_MAX_ROWS: expected a number, got 1.5",
                  "--timeout: expected a number, got soon", HasSubstr("--insecure: ")));
}

TEST_F(SettingsTest, AValueThatDoesNotCountMustBeRightAllTheSame) {
  EXPECT_THAT(Read({"--max-rows", "3"}, {{"PHOTON_MAX_ROWS", "x"}}),
              ElementsAre("PHOTON_MAX_ROWS: expected a number, got x"));
}

TEST_F(SettingsTest, FlagsHaveAValueAndAreGivenOnce) {
  EXPECT_THAT(
      Read({"stray", "--max-rows", "1", "--max-rows=2", "--model"}),
      UnorderedElementsAre(HasSubstr("stray: expected a flag"), "--max-rows: is given twice",
                           "--model: expected a value after it"));
}

TEST_F(SettingsTest, WhatNothingIsLikeIsNotGuessedAt) {
  EXPECT_THAT(Read({"--zzzzzz", "1"}), ElementsAre("--zzzzzz: there is no such flag"));
}

TEST_F(SettingsTest, VariablesOfOtherProgramsAreTheirs) {
  EXPECT_THAT(Read({}, {{"PATH", "/bin"},
                        {"PHOTON_SERVER", "127.0.0.1:50051"},
                        {"PHOTON_API_KEY", "secret"},
                        {"PHOTON_CLIENT_CERT", "client.crt"},
                        {"PHOTON_CLIENT_KEY", "client.key"},
                        {"PHOTON_SERVICE_HOST", "10.0.0.1"},
                        {"PHOTON_HEADLESS_SERVICE_PORT_GRPC", "50051"},
                        {"PHOTON_PORT", "tcp://10.0.0.1:50051"},
                        {"PHOTON_PORT_50051_TCP_ADDR", "10.0.0.1"}}),
              IsEmpty());
}

TEST_F(SettingsTest, AFileThatIsNoTomlIsRefusedWithItsLine) {
  const std::string path = WriteFile("max-rows = 1\nmax-rows 2\n");
  EXPECT_THAT(Read({"--config", path}), ElementsAre(HasSubstr(path + ":2: ")));
}

TEST_F(SettingsTest, AFileHasNoTablesAndNamesNoFile) {
  const std::string path = WriteFile("config = 'other'\n[engine]\nmax-rows = 1\n");
  EXPECT_THAT(Read({"--config", path}), ElementsAre(HasSubstr(":2: engine: expected a string")));
}

TEST_F(SettingsTest, AFileThatIsNotThereIsNamed) {
  EXPECT_THAT(Read({"--config", "/nowhere/photon.toml"}),
              ElementsAre(HasSubstr("/nowhere/photon.toml: No such file")));
}

TEST_F(SettingsTest, WhatIsPrintedIsAFileThatSaysTheSame) {
  ASSERT_THAT(Read({"--max-rows", "3", "--insecure"}, {{"PHOTON_MODEL", "a \"b\" # \xc3\xa9"}}),
              IsEmpty());
  const std::string printed = settings_.Print();
  EXPECT_THAT(printed,
              AllOf(HasSubstr("max-rows = 3  # --max-rows\n"), HasSubstr("  # PHOTON_MODEL\n"),
                    HasSubstr("timeout = 1.5  # default\n"),
                    HasSubstr("insecure = true  # --insecure\n"), Not(HasSubstr("config ="))));
  SettingsTest::TearDown();
  const std::string path = WriteFile(printed);
  std::string model;
  int max_rows = 0;
  bool insecure = false;
  double timeout = 0;
  CLI::App app;
  app.add_option("--model", model)->envname("PHOTON_MODEL")->group("Model");
  app.add_option("--max-rows", max_rows)->envname("PHOTON_MAX_ROWS")->group("Engine");
  app.add_option("--timeout", timeout)->envname("PHOTON_TIMEOUT")->group("Engine");
  app.add_flag("--insecure", insecure)->envname("PHOTON_INSECURE")->group("Engine");
  Settings again(&app);
  EXPECT_THAT(again.Read({"--config", path}, {}), IsEmpty());
  EXPECT_EQ(model, model_);
  EXPECT_EQ(max_rows, 3);
  EXPECT_EQ(timeout, 1.5);
  EXPECT_TRUE(insecure);
}

TEST_F(SettingsTest, WhatIsNotSetIsPrintedAsAComment) {
  ASSERT_THAT(Read({}), IsEmpty());
  EXPECT_THAT(settings_.Print(), HasSubstr("# model is not set\n"));
}

TEST_F(SettingsTest, RequiredSettingsMayComeFromAnywhere) {
  app_.get_option("--model")->required();
  EXPECT_THAT(Read({}), ElementsAre("--model: is required"));
  Settings* const settings = &settings_;
  EXPECT_THAT(settings->Read({}, {{"PHOTON_MODEL", "x"}}), IsEmpty());
}

}  // namespace
}  // namespace photon
