// Certificates for tests, made afresh: an authority, and what it signs.
#pragma once

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <fstream>
#include <memory>
#include <string>

namespace photon {

struct CertificatePem {
  std::string certificate;
  std::string key;
};

class TestAuthority {
 public:
  explicit TestAuthority(const std::string& name) : key_(EVP_EC_gen("P-256"), EVP_PKEY_free) {
    certificate_ = Sign(name, key_.get(), nullptr, "critical,CA:TRUE", nullptr);
  }

  std::string pem() const { return ToPem(certificate_.get()); }

  // Good for localhost and 127.0.0.1, and for clients.
  CertificatePem Issue(const std::string& name) const {
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(EVP_EC_gen("P-256"),
                                                                  EVP_PKEY_free);
    const auto certificate =
        Sign(name, key.get(), certificate_.get(), "CA:FALSE", "DNS:localhost,IP:127.0.0.1");
    const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new(BIO_s_mem()), BIO_free);
    PEM_write_bio_PrivateKey(bio.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr);
    return {.certificate = ToPem(certificate.get()), .key = Contents(bio.get())};
  }

 private:
  using X509Ptr = std::shared_ptr<X509>;

  static std::string Contents(BIO* bio) {
    char* data = nullptr;
    const long size = BIO_get_mem_data(bio, &data);
    return std::string(data, static_cast<size_t>(size));
  }

  static std::string ToPem(X509* certificate) {
    const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new(BIO_s_mem()), BIO_free);
    PEM_write_bio_X509(bio.get(), certificate);
    return Contents(bio.get());
  }

  X509Ptr Sign(const std::string& name, EVP_PKEY* key, X509* issuer, const char* constraints,
               const char* alternative_names) const {
    static long serial = 1;
    X509Ptr certificate(X509_new(), X509_free);
    X509* x = certificate.get();
    X509_set_version(x, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(x), serial++);
    X509_gmtime_adj(X509_getm_notBefore(x), -3600);
    X509_gmtime_adj(X509_getm_notAfter(x), 3600);
    X509_set_pubkey(x, key);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_UTF8,
                               reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    X509_set_issuer_name(x, X509_get_subject_name(issuer == nullptr ? x : issuer));
    AddExtension(x, NID_basic_constraints, constraints);
    if (alternative_names != nullptr) AddExtension(x, NID_subject_alt_name, alternative_names);
    X509_sign(x, issuer == nullptr ? key : key_.get(), EVP_sha256());
    return certificate;
  }

  static void AddExtension(X509* certificate, int nid, const char* value) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value);
    X509_add_ext(certificate, extension, -1);
    X509_EXTENSION_free(extension);
  }

  std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key_;
  X509Ptr certificate_;
};

inline void WriteFile(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

}  // namespace photon
