// photon.v1.DocumentService over the documents of the model that is served; they end with it.
#pragma once

#include "photon/v1/document.grpc.pb.h"
#include "server/call_stream.h"
#include "server/document_upload.h"
#include "server/options.h"

namespace photon {

// Requests arrive as bytes: see byte_buffer_codec.h.
class DocumentService final
    : public v1::DocumentService::WithRawCallbackMethod_CreateDocument<
          v1::DocumentService::WithRawCallbackMethod_GetDocument<
              v1::DocumentService::WithRawCallbackMethod_ListDocuments<
                  v1::DocumentService::WithRawCallbackMethod_UpdateDocument<
                      v1::DocumentService::WithRawCallbackMethod_DeleteDocument<
                          v1::DocumentService::WithRawCallbackMethod_Ask<
                              v1::DocumentService::Service>>>>>> {
 public:
  // What is borrowed outlives the gRPC server.
  DocumentService(const CallEnvironment& calls, const Clock* clock, const RequestLimits& requests,
                  const DocumentLimits& documents);

  grpc::ServerReadReactor<grpc::ByteBuffer>* CreateDocument(grpc::CallbackServerContext* context,
                                                            grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* GetDocument(grpc::CallbackServerContext* context,
                                        const grpc::ByteBuffer* request,
                                        grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* ListDocuments(grpc::CallbackServerContext* context,
                                          const grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* UpdateDocument(grpc::CallbackServerContext* context,
                                           const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* DeleteDocument(grpc::CallbackServerContext* context,
                                           const grpc::ByteBuffer* request,
                                           grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* Ask(grpc::CallbackServerContext* context,
                                                  const grpc::ByteBuffer* request) override;

 private:
  const CallEnvironment calls_;
  const Clock* const clock_;
  const RequestLimits requests_;
  const UploadEnvironment uploads_;
};

}  // namespace photon
