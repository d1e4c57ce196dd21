#include "server/document_service.h"

#include <string>
#include <utility>
#include <vector>

#include "server/byte_buffer_codec.h"
#include "server/generation_request.h"
#include "server/request_id.h"
#include "server/tenant.h"
#include "server/unary_call.h"

namespace photon {

DocumentService::DocumentService(const CallEnvironment& calls, const Clock* clock,
                                 const RequestLimits& requests, const DocumentLimits& documents)
    : calls_(calls),
      clock_(clock),
      requests_(requests),
      uploads_{.models = calls.models, .clock = clock, .limits = documents} {}

grpc::ServerReadReactor<grpc::ByteBuffer>* DocumentService::CreateDocument(
    grpc::CallbackServerContext* context, grpc::ByteBuffer* response) {
  return DocumentUpload::Start(
      context, NameCall(context, v1::DocumentService::service_full_name(), "CreateDocument"),
      uploads_, response);
}

grpc::ServerUnaryReactor* DocumentService::GetDocument(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request_buffer,
                                                       grpc::ByteBuffer* response_buffer) {
  return AnswerUnary<v1::GetDocumentRequest>(
      context, *request_buffer, *response_buffer,
      [&](const v1::GetDocumentRequest& request) -> absl::StatusOr<v1::GetDocumentResponse> {
        const auto document =
            calls_.models->current()->documents().Find(TenantOf(*context), request.document_id());
        if (!document.ok()) return document.status();
        v1::GetDocumentResponse response;
        *response.mutable_document() = ToProto(*document, clock_->Now());
        return response;
      });
}

grpc::ServerUnaryReactor* DocumentService::ListDocuments(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request_buffer,
                                                         grpc::ByteBuffer* response_buffer) {
  return AnswerUnary<v1::ListDocumentsRequest>(
      context, *request_buffer, *response_buffer,
      [&](const v1::ListDocumentsRequest&) -> absl::StatusOr<v1::ListDocumentsResponse> {
        v1::ListDocumentsResponse response;
        const TimePoint now = clock_->Now();
        for (const Document& document :
             calls_.models->current()->documents().List(TenantOf(*context))) {
          *response.add_documents() = ToProto(document, now);
        }
        return response;
      });
}

grpc::ServerUnaryReactor* DocumentService::UpdateDocument(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request_buffer,
                                                          grpc::ByteBuffer* response_buffer) {
  return AnswerUnary<v1::UpdateDocumentRequest>(
      context, *request_buffer, *response_buffer,
      [&](const v1::UpdateDocumentRequest& request) -> absl::StatusOr<v1::UpdateDocumentResponse> {
        const auto ttl = CheckTtl(request.ttl_s(), uploads_.limits);
        if (!ttl.ok()) return ttl.status();
        const TimePoint now = clock_->Now();
        const auto document = calls_.models->current()->documents().Extend(
            TenantOf(*context), request.document_id(), now + *ttl);
        if (!document.ok()) return document.status();
        v1::UpdateDocumentResponse response;
        *response.mutable_document() = ToProto(*document, now);
        return response;
      });
}

grpc::ServerUnaryReactor* DocumentService::DeleteDocument(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request_buffer,
                                                          grpc::ByteBuffer* response_buffer) {
  return AnswerUnary<v1::DeleteDocumentRequest>(
      context, *request_buffer, *response_buffer,
      [&](const v1::DeleteDocumentRequest& request) -> absl::StatusOr<v1::DeleteDocumentResponse> {
        const absl::Status status =
            calls_.models->current()->documents().Delete(TenantOf(*context), request.document_id());
        if (!status.ok()) return status;
        return v1::DeleteDocumentResponse();
      });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* DocumentService::Ask(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* buffer) {
  CallStream::Call call = {context,
                           NameCall(context, v1::DocumentService::service_full_name(), "Ask")};
  v1::AskRequest request;
  if (absl::Status status = ParseMessage(*buffer, &request); !status.ok()) {
    return CallStream::Reject(std::move(call), status);
  }
  const ModelLease model = calls_.models->Enter();
  const auto document = model->documents().Find(TenantOf(*context), request.document_id());
  if (!document.ok()) return CallStream::Reject(std::move(call), document.status());
  auto queries =
      ParseAskRequest(request, *document->tokens, model->facts(), requests_, RandomBits());
  if (!queries.ok()) return CallStream::Reject(std::move(call), queries.status());
  CheckThatEachFits(model->scheduler(), *queries);
  return CallStream::Start(std::move(call), calls_, model.model(), *std::move(queries),
                           EncodeAskResponse);
}

}  // namespace photon
