//! Generates the gRPC services from our minimal .proto files (needs `protoc`).

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .build_client(true)
        .compile_protos(&["proto/csi.proto", "proto/registration.proto"], &["proto"])
}
