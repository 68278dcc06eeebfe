//! Real disks, on loop devices and with real daemons: what is there after a crash, where there is no
//! room, where a sector is bad.

mod crash;
mod device;
mod failing;
mod full;
mod machine;
mod writers;
