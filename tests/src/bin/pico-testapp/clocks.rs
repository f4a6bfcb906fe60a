//! Clocks as the app sees them, and three kinds of timers that note when they fired.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;

/// When each timer fired, in nanoseconds of CLOCK_REALTIME, which no time namespace changes. 0: not yet.
static FIRED: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
const NAMES: [&str; 3] = ["timerfd", "posix", "itimer"];

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one timespec of ours; the clock exists on every Linux.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// CLOCK_MONOTONIC, CLOCK_BOOTTIME and CLOCK_REALTIME in nanoseconds.
#[allow(clippy::unnecessary_wraps, reason = "all commands answer a Result")]
pub fn now() -> Result<String> {
    let clocks = [libc::CLOCK_MONOTONIC, libc::CLOCK_BOOTTIME, libc::CLOCK_REALTIME];
    Ok(clocks.map(|clock| read(clock).to_string()).join(" "))
}

fn note(timer: usize) {
    FIRED[timer].store(read(libc::CLOCK_REALTIME), Ordering::SeqCst);
}

extern "C" fn on_posix(_: libc::c_int) {
    note(1);
}

extern "C" fn on_itimer(_: libc::c_int) {
    note(2);
}

fn checked(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 {
        Err(std::io::Error::last_os_error().into())
    } else {
        Ok(result)
    }
}

/// Arms one timer of each kind to fire after `time`, and every `period` from then on; 0: once. The timerfd is closed when it
/// has fired.
pub fn arm(time: Duration, period: Duration) -> Result<()> {
    FIRED.iter().for_each(|fired| fired.store(0, Ordering::SeqCst));
    let timespec = |time: Duration| -> Result<libc::timespec> {
        Ok(libc::timespec {
            tv_sec: i64::try_from(time.as_secs())?,
            tv_nsec: i64::from(time.subsec_nanos()),
        })
    };
    let timeval = |time: Duration| -> Result<libc::timeval> {
        Ok(libc::timeval {
            tv_sec: i64::try_from(time.as_secs())?,
            tv_usec: i64::from(time.subsec_micros()),
        })
    };
    let value = libc::itimerspec {
        it_interval: timespec(period)?,
        it_value: timespec(time)?,
    };
    let interval = libc::itimerval {
        it_interval: timeval(period)?,
        it_value: timeval(time)?,
    };
    // SAFETY: plain system calls on values of this function; the thread owns the descriptor.
    let timerfd = unsafe {
        let fd = checked(libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC))?;
        checked(libc::timerfd_settime(
            fd,
            0,
            &raw const value,
            std::ptr::null_mut(),
        ))?;
        fd
    };
    std::thread::spawn(move || {
        let mut expirations = 0_u64;
        // SAFETY: reads 8 bytes into a value of 8 bytes, then closes the thread's own descriptor.
        unsafe {
            while libc::read(timerfd, (&raw mut expirations).cast(), 8) != 8 {}
            libc::close(timerfd);
        }
        note(0);
    });
    // SAFETY: the handlers only read a clock and store to an atomic; the structures are zeroed plain data
    // with the fields set that the calls read.
    unsafe {
        libc::signal(libc::SIGUSR1, on_posix as *const () as libc::sighandler_t);
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGUSR1;
        let mut timer: libc::timer_t = std::ptr::null_mut();
        checked(libc::timer_create(
            libc::CLOCK_MONOTONIC,
            &raw mut event,
            &raw mut timer,
        ))?;
        checked(libc::timer_settime(
            timer,
            0,
            &raw const value,
            std::ptr::null_mut(),
        ))?;
        libc::signal(libc::SIGALRM, on_itimer as *const () as libc::sighandler_t);
        checked(libc::setitimer(
            libc::ITIMER_REAL,
            &raw const interval,
            std::ptr::null_mut(),
        ))?;
    }
    Ok(())
}

/// `NAME=NANOSECONDS` for each timer, 0 when it has not fired.
pub fn fired() -> String {
    let times = NAMES
        .iter()
        .zip(&FIRED)
        .map(|(name, fired)| format!("{name}={}", fired.load(Ordering::SeqCst)));
    times.collect::<Vec<_>>().join(" ")
}
