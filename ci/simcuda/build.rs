//! Names the library as programs look for it.

fn main() {
    // A later dlopen("libcuda.so.1") in the same process then gives this object too.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    println!("cargo:rerun-if-changed=build.rs");
}
