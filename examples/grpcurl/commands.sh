#!/usr/bin/env bash
# Every service with grpcurl, which learns them from the server by reflection.
set -euo pipefail
server=${PHOTON_SERVER:-127.0.0.1:50051}

grpcurl -plaintext "$server" list
grpcurl -plaintext "$server" list photon.v1.GenerationService
grpcurl -plaintext -d '{"service": "photon.v1.GenerationService"}' "$server" grpc.health.v1.Health/Check
grpcurl -plaintext "$server" photon.v1.ModelService/GetModelInfo
grpcurl -plaintext -d '{"text": "Once upon a time", "addBos": true}' "$server" photon.v1.ModelService/Tokenize
grpcurl -plaintext -d '{"promptTokens": 1000, "maxTokens": 200}' "$server" photon.v1.ModelService/EstimateCost
grpcurl -plaintext -H 'x-request-id: story-1' -d '{"prompt": {"text": "Once upon a time"}, "parameters": {"maxTokens": 20}}' "$server" photon.v1.GenerationService/Generate
grpcurl -plaintext -d '{"prompts": [{"text": "One day"}, {"text": "The fox"}], "parameters": {"maxTokens": 8, "n": 2}}' "$server" photon.v1.GenerationService/GenerateBatch
grpcurl -plaintext -d '{"settings": {"displayName": "tale"}} {"text": "Once there was a fox."}' "$server" photon.v1.DocumentService/CreateDocument
grpcurl -plaintext "$server" photon.v1.DocumentService/ListDocuments
grpcurl -plaintext "$server" photon.v1.AdminService/GetStats
