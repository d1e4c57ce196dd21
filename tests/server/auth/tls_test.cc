#include "server/auth/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include <filesystem>
#include <memory>
#include <string>

#include "tests/server/auth/test_certificates.h"

namespace photon {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class TlsTest : public ::testing::Test {
 protected:
  TlsTest()
      : directory_(::testing::TempDir() + "/tls_" +
                   ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::create_directories(directory_);
    options_ = {.certificate_file = directory_ + "/cert.pem", .key_file = directory_ + "/key.pem"};
  }
  ~TlsTest() override { std::filesystem::remove_all(directory_); }

  void Write(const CertificatePem& pem) const {
    WriteFile(options_.certificate_file, pem.certificate);
    WriteFile(options_.key_file, pem.key);
  }

  void TrustClientsOf(const TestAuthority& authority) {
    options_.client_ca_file = directory_ + "/ca.pem";
    WriteFile(options_.client_ca_file, authority.pem());
  }

  std::string CreateError() const {
    const auto source = TlsSource::Create(options_);
    EXPECT_EQ(source.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(source.status().message());
  }

  const std::string directory_;
  TlsOptions options_;
};

// A handshake in memory between a server with `server` and a client that trusts `authority`.
struct Handshake {
  bool done = false;
  std::string server_name;  // the server certificate's
  std::string protocol;     // of TLS
  std::string alpn;
};

Handshake Shake(SSL_CTX* server_context, const TestAuthority& authority,
                const CertificatePem* client_certificate = nullptr, int max_version = 0) {
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> client_context(SSL_CTX_new(TLS_client_method()),
                                                                   SSL_CTX_free);
  const auto read_certificate = [](const std::string& pem) {
    const std::unique_ptr<BIO, decltype(&BIO_free)> bio(
        BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free);
    return std::shared_ptr<X509>(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr),
                                 X509_free);
  };
  const auto root = read_certificate(authority.pem());
  X509_STORE_add_cert(SSL_CTX_get_cert_store(client_context.get()), root.get());
  SSL_CTX_set_verify(client_context.get(), SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_min_proto_version(client_context.get(), TLS1_VERSION);
  SSL_CTX_set_max_proto_version(client_context.get(), max_version);
  // Old protocols need what OpenSSL otherwise no longer does.
  if (max_version != 0) SSL_CTX_set_cipher_list(client_context.get(), "ALL:@SECLEVEL=0");
  const unsigned char alpn[] = "\x02h2\x08http/1.1";
  SSL_CTX_set_alpn_protos(client_context.get(), alpn, sizeof(alpn) - 1);
  if (client_certificate != nullptr) {
    const auto certificate = read_certificate(client_certificate->certificate);
    SSL_CTX_use_certificate(client_context.get(), certificate.get());
    const std::unique_ptr<BIO, decltype(&BIO_free)> bio(
        BIO_new_mem_buf(client_certificate->key.data(), -1), BIO_free);
    EVP_PKEY* key = PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr);
    SSL_CTX_use_PrivateKey(client_context.get(), key);
    EVP_PKEY_free(key);
  }

  const std::unique_ptr<SSL, decltype(&SSL_free)> client(SSL_new(client_context.get()), SSL_free);
  const std::unique_ptr<SSL, decltype(&SSL_free)> server(SSL_new(server_context), SSL_free);
  BIO* client_end = nullptr;
  BIO* server_end = nullptr;
  BIO_new_bio_pair(&client_end, 0, &server_end, 0);
  SSL_set_bio(client.get(), client_end, client_end);
  SSL_set_bio(server.get(), server_end, server_end);
  SSL_set_connect_state(client.get());
  SSL_set_accept_state(server.get());
  Handshake result;
  for (int i = 0; i < 20 && !result.done; ++i) {
    const bool client_done = SSL_do_handshake(client.get()) == 1;
    const bool server_done = SSL_do_handshake(server.get()) == 1;
    result.done = client_done && server_done;
  }
  ERR_clear_error();
  if (!result.done) return result;
  X509* certificate = SSL_get0_peer_certificate(client.get());
  char name[64] = "";
  X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, name, sizeof(name));
  result.server_name = name;
  result.protocol = SSL_get_version(client.get());
  const unsigned char* selected = nullptr;
  unsigned int size = 0;
  SSL_get0_alpn_selected(client.get(), &selected, &size);
  result.alpn.assign(reinterpret_cast<const char*>(selected), size);
  return result;
}

TEST_F(TlsTest, ServesTheCertificateToThoseWhoTrustIt) {
  const TestAuthority authority("authority");
  Write(authority.Issue("server"));
  const auto source = TlsSource::Create(options_);
  ASSERT_TRUE(source.ok()) << source.status();
  const Handshake handshake = Shake((*source)->context().get(), authority);
  EXPECT_TRUE(handshake.done);
  EXPECT_EQ(handshake.server_name, "server");
  EXPECT_EQ(handshake.protocol, "TLSv1.3");
  EXPECT_EQ(handshake.alpn, "http/1.1");
  EXPECT_FALSE(Shake((*source)->context().get(), TestAuthority("another")).done);
}

TEST_F(TlsTest, RefusesProtocolsBeforeTls12) {
  const TestAuthority authority("authority");
  Write(authority.Issue("server"));
  const auto source = TlsSource::Create(options_);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(Shake((*source)->context().get(), authority, nullptr, TLS1_2_VERSION).protocol,
            "TLSv1.2");
  EXPECT_FALSE(Shake((*source)->context().get(), authority, nullptr, TLS1_1_VERSION).done);
}

TEST_F(TlsTest, ClientsNeedACertificateOfTheAuthority) {
  const TestAuthority authority("authority");
  const TestAuthority clients("clients");
  Write(authority.Issue("server"));
  TrustClientsOf(clients);
  const auto source = TlsSource::Create(options_);
  ASSERT_TRUE(source.ok()) << source.status();
  SSL_CTX* context = (*source)->context().get();
  const CertificatePem known = clients.Issue("client");
  const CertificatePem stranger = authority.Issue("client");
  EXPECT_TRUE(Shake(context, authority, &known).done);
  EXPECT_FALSE(Shake(context, authority, nullptr).done);
  EXPECT_FALSE(Shake(context, authority, &stranger).done);
}

TEST_F(TlsTest, AReloadChangesNewConnectionsOnly) {
  const TestAuthority authority("authority");
  Write(authority.Issue("first"));
  const auto source = TlsSource::Create(options_);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(*(*source)->Reload(), false);
  const auto before = (*source)->context();
  Write(authority.Issue("second"));
  EXPECT_EQ(*(*source)->Reload(), true);
  EXPECT_EQ(Shake((*source)->context().get(), authority).server_name, "second");
  EXPECT_EQ(Shake(before.get(), authority).server_name, "first");
}

TEST_F(TlsTest, HalfReplacedFilesLeaveTheOldOnesInUse) {
  const TestAuthority authority("authority");
  Write(authority.Issue("first"));
  const auto source = TlsSource::Create(options_);
  ASSERT_TRUE(source.ok()) << source.status();
  const CertificatePem second = authority.Issue("second");

  WriteFile(options_.certificate_file, second.certificate.substr(0, 200));
  EXPECT_THAT(std::string((*source)->Reload().status().message()), HasSubstr("cert.pem: "));
  WriteFile(options_.certificate_file, second.certificate);
  EXPECT_THAT(std::string((*source)->Reload().status().message()),
              HasSubstr("key.pem: is not the key of"));
  std::filesystem::remove(options_.key_file);
  EXPECT_FALSE((*source)->Reload().ok());
  EXPECT_EQ(Shake((*source)->context().get(), authority).server_name, "first");

  WriteFile(options_.key_file, second.key);
  EXPECT_EQ(*(*source)->Reload(), true);
  EXPECT_EQ(Shake((*source)->context().get(), authority).server_name, "second");
}

TEST_F(TlsTest, FilesThatMakeNoSenseAreNamed) {
  const TestAuthority authority("authority");
  EXPECT_THAT(CreateError(), HasSubstr("cert.pem: No such file"));
  Write({.certificate = "nothing", .key = "nothing"});
  EXPECT_THAT(CreateError(), HasSubstr("cert.pem: has no certificate"));
  Write({.certificate = authority.Issue("a").certificate, .key = "nothing"});
  EXPECT_THAT(CreateError(), HasSubstr("key.pem: no private key"));
  Write({.certificate = authority.Issue("a").certificate, .key = authority.Issue("b").key});
  EXPECT_THAT(CreateError(), HasSubstr("key.pem: is not the key of"));
  Write(authority.Issue("a"));
  TrustClientsOf(authority);
  WriteFile(options_.client_ca_file, "nothing");
  EXPECT_THAT(CreateError(), HasSubstr("ca.pem: has no certificate"));
}

TEST(TlsOptions, NameCertificateAndKeyTogether) {
  EXPECT_THAT(TlsOptions().Validate(), IsEmpty());
  EXPECT_THAT((TlsOptions{.certificate_file = "c", .key_file = "k"}).Validate(), IsEmpty());
  EXPECT_THAT((TlsOptions{.certificate_file = "c"}).Validate(),
              ElementsAre("tls_cert, tls_key: one needs the other"));
  EXPECT_THAT((TlsOptions{.client_ca_file = "c"}).Validate(),
              ElementsAre("tls_client_ca: needs tls_cert and tls_key"));
}

}  // namespace
}  // namespace photon
