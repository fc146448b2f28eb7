//! Entry points that torch looks up together with others, and that are not simulated.

use crate::entry::entry_points;
use crate::error::Error;

macro_rules! refused {
    ($($name:ident)*) => {
        entry_points! {
            $(
                /// Not supported.
                fn $name() { Err(Error::NOT_SUPPORTED) }
            )*
        }
    };
}

refused! {
    cuCtxFromGreenCtx
    cuDevResourceGenerateDesc
    cuDevSmResourceSplitByCount
    cuDeviceGetDevResource
    cuGreenCtxCreate
    cuGreenCtxDestroy
    cuGreenCtxStreamCreate
    cuMemExportToShareableHandle
    cuMemGetAllocationPropertiesFromHandle
    cuMemImportFromShareableHandle
    cuMemRetainAllocationHandle
    cuMulticastAddDevice
    cuMulticastBindMem
    cuMulticastCreate
    cuMulticastUnbind
    cuStreamWriteValue32
}
