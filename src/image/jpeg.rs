//! JPEG to pixels, byte for byte as Pillow reads it.
//!
//! Pillow decodes by libjpeg-turbo, and every public reward model and data set was read through it. Decoders agree on
//! what is stored but not on the last bits of the cosine transform, nor on how halved colours are widened: of 4:2:0
//! pictures the one of `image` gives 28 % of the bytes differently, by up to six. So libjpeg-turbo's own arithmetic is
//! used, by way of MozJPEG, which keeps it. Where that library only warns that data are missing or nonsense, and fills the
//! picture up with grey, this is an error here.
//!
//! # Source
//! Pillow, `JpegImagePlugin.py`, `libImaging/JpegDecode.c`; libjpeg-turbo, `libjpeg.txt`.

use std::os::raw::{c_int, c_ulong};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use mozjpeg_sys as sys;

use crate::pixels::{Image, Mode, light};

/// More pixels than Pillow opens (twice its `MAX_IMAGE_PIXELS`): a header that lies, or a bomb.
const MOST_PIXELS: u64 = 178_956_970;

/// At least one bit of data is spent on each square of 8 × 8 pixels.
const MOST_PIXELS_PER_BYTE: u64 = 8 * 64;

/// A picture's samples: grey, RGB or inverted ink, as `bands` says (1, 3 or 4).
pub(super) struct Stored {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) bands: usize,
    pub(super) bytes: Vec<u8>,
}

impl Stored {
    /// As Pillow's `convert("RGB")`.
    pub(super) fn rgb(self) -> Image {
        let rgb = match self.bands {
            1 => self.bytes.iter().flat_map(|grey| [*grey; 3]).collect(),
            3 => self.bytes,
            _ => {
                // Pillow takes all ink in JPEGs to be inverted, as Adobe's is.
                let ink: Vec<u8> = self.bytes.iter().map(|byte| 255 - byte).collect();
                let rgb = ink.chunks_exact(4).flat_map(|p| light([p[0], p[1], p[2], p[3]])).collect();
                return Image::new(self.width, self.height, rgb).stored_as(Mode::Ink(ink));
            }
        };
        Image::new(self.width, self.height, rgb)
    }
}

/// What libjpeg-turbo's error handlers leave by; it never leaves [`decode`].
struct Fault(String);

/// The pixels of a JPEG, or why there are none.
pub(super) fn decode(bytes: &[u8]) -> Result<Stored, String> {
    // The library reports through a function that must not return. Unwinding out of it is what it is compiled for.
    catch_unwind(AssertUnwindSafe(|| Reader::new().read(bytes))).unwrap_or_else(|cause| {
        match cause.downcast::<Fault>() {
            Ok(fault) => Err(fault.0),
            Err(cause) => resume_unwind(cause),
        }
    })
}

/// libjpeg's state and its error manager, at addresses that stay.
struct Reader {
    state: Box<sys::jpeg_decompress_struct>,
    // The state points to it.
    _faults: Box<sys::jpeg_error_mgr>,
}

impl Reader {
    fn new() -> Self {
        // SAFETY: both are plain C structures, for which zeros are a value; the library fills them in.
        unsafe {
            let mut faults: Box<sys::jpeg_error_mgr> = Box::new(std::mem::zeroed());
            sys::jpeg_std_error(&mut faults);
            faults.error_exit = Some(stop);
            faults.emit_message = Some(weigh);
            let mut state: Box<sys::jpeg_decompress_struct> = Box::new(std::mem::zeroed());
            state.common.err = &raw mut *faults;
            sys::jpeg_create_decompress(&raw mut *state);
            Self { state, _faults: faults }
        }
    }

    fn read(mut self, bytes: &[u8]) -> Result<Stored, String> {
        let state = &mut *self.state;
        // SAFETY: the state was created; `bytes` outlives it, as it is destroyed with `self`.
        unsafe {
            sys::jpeg_mem_src(state, bytes.as_ptr(), bytes.len() as c_ulong);
            sys::jpeg_read_header(state, 1);
        }
        let (width, height) = (state.image_width as usize, state.image_height as usize);
        let pixels = width as u64 * height as u64;
        if pixels > MOST_PIXELS {
            return Err(format!(
                "it says that it has {width}×{height} pixels; at most {MOST_PIXELS} are read"
            ));
        }
        if pixels / MOST_PIXELS_PER_BYTE > bytes.len() as u64 {
            return Err(format!(
                "it says that it has {width}×{height} pixels, for which its data are too few"
            ));
        }
        let bands = match state.num_components {
            1 => 1,
            3 => 3,
            4 => 4,
            other => {
                return Err(format!("it has {other} components; expected grey (1), colour (3) or ink (4)"));
            }
        };
        state.out_color_space = match bands {
            1 => sys::JCS_GRAYSCALE,
            3 => sys::JCS_RGB,
            _ => sys::JCS_CMYK,
        };
        let row = bands * width;
        let mut pixels = vec![0; row * height];
        // SAFETY: the header was read; each row has room for `row` samples, which is what the colour space gives.
        unsafe {
            sys::jpeg_start_decompress(state);
            for row in pixels.chunks_exact_mut(row) {
                let mut start = row.as_mut_ptr();
                if sys::jpeg_read_scanlines(state, &raw mut start, 1) != 1 {
                    return Err("its data end before its last row".into());
                }
            }
            sys::jpeg_finish_decompress(state);
        }
        Ok(Stored { width, height, bands, bytes: pixels })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // SAFETY: the state was created, and is destroyed once.
        unsafe { sys::jpeg_destroy_decompress(&mut self.state) }
    }
}

/// What the library says of its last message.
unsafe fn message(state: &mut sys::jpeg_common_struct) -> String {
    // SAFETY: the library calls its handlers with the error manager that it was given. It writes at most 80 bytes; the
    // binding has the buffer as read only, which is the same pointer.
    unsafe {
        type Reads = unsafe extern "C-unwind" fn(&mut sys::jpeg_common_struct, &[u8; 80]);
        type Writes = unsafe extern "C-unwind" fn(&mut sys::jpeg_common_struct, &mut [u8; 80]);
        let mut buffer = [0u8; 80];
        if let Some(format) = (*state.err).format_message {
            std::mem::transmute::<Reads, Writes>(format)(state, &mut buffer);
        }
        let end = buffer.iter().position(|byte| *byte == 0).unwrap_or(buffer.len());
        String::from_utf8_lossy(&buffer[..end]).into_owned()
    }
}

/// A fatal error.
unsafe extern "C-unwind" fn stop(state: &mut sys::jpeg_common_struct) {
    // SAFETY: called by the library.
    let text = unsafe { message(state) };
    resume_unwind(Box::new(Fault(text)));
}

/// A warning, which is fatal where pixels are lost by it, or a remark.
unsafe extern "C-unwind" fn weigh(state: &mut sys::jpeg_common_struct, level: c_int) {
    const HARMLESS: [sys::J_MESSAGE_CODE; 6] = [
        sys::JWRN_ADOBE_XFORM,
        sys::JWRN_BOGUS_ICC,
        sys::JWRN_EXTRANEOUS_DATA,
        sys::JWRN_JFIF_MAJOR,
        sys::JWRN_NOT_SEQUENTIAL,
        sys::JWRN_TOO_MUCH_DATA,
    ];
    // SAFETY: called by the library, with its error manager.
    let code = unsafe { (*state.err).msg_code };
    if level < 0 && !HARMLESS.iter().any(|harmless| *harmless as c_int == code) {
        // SAFETY: as above.
        unsafe { stop(state) };
    }
}
