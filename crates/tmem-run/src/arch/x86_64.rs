//! x86_64: registers by `user_regs_struct`, `syscall` as two bytes, the agent in assembler.

use std::arch::global_asm;

/// Registers of a stopped thread.
pub type Registers = libc::user_regs_struct;

/// The bytes of the system call instruction, as found in every vDSO.
pub const SYSCALL_INSTRUCTION: &[u8] = &[0x0f, 0x05];

/// ELF machine number of programs that the agent's code can run in.
pub const ELF_MACHINE: u16 = 62;

// The agent: position-independent, without stack, heap, libc or thread-local storage.
//
// Entry `tmem_agent_begin` is a system call followed by a fork of ways: the stopped thread calls clone(2) here and
// meets the breakpoint; the new thread goes on as the agent. It closes every descriptor in its own table, makes a
// socket pair (the supervisor takes one end by pidfd_getfd), says it is ready, and then runs the batches of system
// calls that arrive as packets: a count, then seven words per call (number, six arguments), then whatever the
// arguments point at. The results replace the numbers and the packet goes back.
//
// End of file means that the supervisor is gone: the process is killed, because nobody can bring its pages back.
//
// rbx: message buffer; r13: its size; fd 0: the agent's end of the socket pair.
global_asm!(
    ".pushsection .rodata.tmem_agent, \"a\", @progbits",
    ".balign 16",
    ".globl tmem_agent_begin",
    "tmem_agent_begin:",
    "syscall",
    "test rax, rax",
    "jz 1f",
    "int3",
    "1:",
    "xor edi, edi",
    "mov esi, 0xffffffff",
    "xor edx, edx",
    "mov eax, 436", // close_range
    "syscall",
    "mov edi, 1",       // AF_UNIX
    "mov esi, 0x80005", // SOCK_SEQPACKET | SOCK_CLOEXEC
    "xor edx, edx",
    "mov r10, rbx",
    "mov eax, 53", // socketpair
    "syscall",
    "mov dword ptr [rbx + 12], eax",
    "mov dword ptr [rbx + 8], 1", // ready
    "test eax, eax",
    "jnz 6f", // no sockets: nothing was managed yet, so leave quietly
    "2:",
    "xor edi, edi",
    "mov rsi, rbx",
    "mov rdx, r13",
    "xor eax, eax", // read
    "syscall",
    "cmp rax, -4", // EINTR
    "je 2b",
    "test rax, rax",
    "jle 5f",
    "mov r14, rax",
    "mov r15, [rbx]",
    "lea rbp, [rbx + 8]",
    "3:",
    "test r15, r15",
    "jz 4f",
    "mov rax, [rbp]",
    "mov rdi, [rbp + 8]",
    "mov rsi, [rbp + 16]",
    "mov rdx, [rbp + 24]",
    "mov r10, [rbp + 32]",
    "mov r8, [rbp + 40]",
    "mov r9, [rbp + 48]",
    "syscall",
    "mov [rbp], rax",
    "add rbp, 56",
    "dec r15",
    "jmp 3b",
    "4:",
    "xor edi, edi",
    "mov rsi, rbx",
    "mov rdx, r14",
    "mov eax, 1", // write
    "syscall",
    "jmp 2b",
    "5:",
    "mov eax, 39", // getpid
    "syscall",
    "mov edi, eax",
    "mov esi, 9",  // SIGKILL
    "mov eax, 62", // kill
    "syscall",
    "6:",
    "xor edi, edi",
    "mov eax, 60", // exit
    "syscall",
    "jmp 6b",
    ".globl tmem_agent_end",
    "tmem_agent_end:",
    ".popsection",
);

unsafe extern "C" {
    static tmem_agent_begin: u8;
    static tmem_agent_end: u8;
}

/// The agent's machine code; its first instruction is the system call that [`agent_entry`] prepares.
pub fn agent_code() -> &'static [u8] {
    // SAFETY: both symbols bound one object in read-only data, laid down by the assembler above.
    unsafe {
        let begin = &raw const tmem_agent_begin;
        let end = &raw const tmem_agent_end;
        std::slice::from_raw_parts(begin, end.offset_from(begin) as usize)
    }
}

/// `base` changed so that the thread, resumed at `instruction`, runs one system call.
pub fn with_system_call(base: &Registers, instruction: u64, number: i64, args: [u64; 6]) -> Registers {
    let mut r = *base;
    r.rip = instruction;
    r.rax = number as u64;
    // No system call is under way any more, so the kernel must not try to restart one.
    r.orig_rax = u64::MAX;
    [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = args;
    r
}

/// `base` changed so that the thread clones itself into an agent at `code`, with its messages in `buffer`.
pub fn agent_entry(base: &Registers, code: u64, clone_flags: u64, stack: u64, buffer: u64, bytes: u64) -> Registers {
    let mut r = with_system_call(base, code, libc::SYS_clone, [clone_flags, stack, 0, 0, 0, 0]);
    r.rbx = buffer;
    r.r13 = bytes;
    r
}

/// What the system call returned.
pub fn result(registers: &Registers) -> i64 {
    registers.rax as i64
}
