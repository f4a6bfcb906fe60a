//! From events to the windows that the model learns from.

use super::event::{Event, What};
use crate::activeset::{Kind, Source, Window};

/// Cuts the windows out of events, oldest first. What lies outside of any is left out; a window that is not ended, or
/// in which events were lost, is not complete.
pub fn windows(events: &[Event]) -> Vec<Window> {
    let mut windows = Vec::new();
    let mut open: Option<Window> = None;
    for event in events {
        match event.what {
            What::WakeStart { trigger, pages } => {
                close(&mut windows, &mut open, false);
                let mut window = Window::new(Kind::Wake, trigger);
                window.checkpoint_pages = pages;
                open = Some(window);
            }
            What::HotStart => {
                close(&mut windows, &mut open, false);
                open = Some(Window::new(Kind::Hot, None));
            }
            What::End { accessed } => {
                if accessed && let Some(window) = &mut open {
                    window.accessed_bits_read();
                }
                close(&mut windows, &mut open, true);
            }
            what => {
                if let Some(window) = &mut open {
                    tell(window, what);
                }
            }
        }
    }
    close(&mut windows, &mut open, false);
    windows
}

fn tell(window: &mut Window, what: What) {
    match what {
        What::Fault(fault) => window.observe(fault.page(), fault.write, fault.port, Source::Fault),
        What::Accessed { at, write } => window.observe(at, write, None, Source::Accessed),
        What::Recv { port, .. } => window.begin(port),
        What::Send { port, .. } => window.end(port),
        What::Prefetched { at } => window.prefetched(at),
        What::Lost { .. } => window.lost(),
        What::Accept { .. } | What::WakeStart { .. } | What::HotStart | What::End { .. } => {}
    }
}

fn close(windows: &mut Vec<Window>, open: &mut Option<Window>, ended: bool) {
    if let Some(mut window) = open.take() {
        if !ended {
            window.lost();
        }
        windows.push(window);
    }
}
