#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a program on a processor that this machine lacks: Bochs emulates a Tiger Lake (AVX-512 with
# VBMI2), which boots Linux with the program as all there is beside busybox.
#
#   bochs.sh <folder to work in> <kernel> <statically linked program> <arguments...>
#
# Answers with the program's exit state; its output, the guest's console, is passed through. The
# environment variable SPARSEKERN_TEST_ISAS goes along. Needs bochs, bochs-term, bochsbios, vgabios,
# busybox-static, isolinux, syslinux-common and genisoimage.
set -euo pipefail
folder=$1 kernel=$(realpath "$2") program=$(realpath "$3")
shift 3
mkdir -p "$folder" && cd "$folder"
rm -rf iso root
mkdir -p iso root/bin root/proc root/dev
cp /bin/busybox root/bin/
strip -o root/program "$program"
{
  echo '#!/bin/busybox sh'
  echo '/bin/busybox mount -t proc proc /proc'
  echo '/bin/busybox mount -t devtmpfs dev /dev'
  printf 'export SPARSEKERN_TEST_ISAS=%q\n' "${SPARSEKERN_TEST_ISAS:-}"
  printf '/program'
  printf ' %q' "$@"
  printf '\necho "exit state $?"\n'
  echo '/bin/busybox sleep 2'  # or the end of the output is lost
  echo '/bin/busybox poweroff -f'
} >root/init
chmod +x root/init
(cd root && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >iso/initrd
cp "$kernel" iso/linux
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 iso/
# What Bochs 2.7 has, but not as Linux expects it: XSAVE in compact form, protection keys (they would
# cost AVX), RDPID.
cat >iso/isolinux.cfg <<'END'
DEFAULT linux
PROMPT 0
LABEL linux
  KERNEL linux
  INITRD initrd
  APPEND console=ttyS0 quiet nokaslr mitigations=off panic=-1 random.trust_cpu=on lsm=capability tsc=reliable noxsaves clearcpuid=pku,ospke,xsaves,xsavec,rdpid,umip,fsrm
END
genisoimage -quiet -o boot.iso -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 \
  -boot-info-table iso
# Few instructions a second, by the guest's clock: it waits for devices all the shorter.
cat >bochsrc <<'END'
cpu: model=tigerlake, count=1, ips=5000000, reset_on_triple_fault=0
megs: 512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
display_library: term
boot: cdrom
ata0-master: type=cdrom, path=boot.iso, status=inserted
com1: enabled=1, mode=file, dev=console
log: log
panic: action=fatal
clock: sync=none
END
echo continue >commands  # Debian's Bochs starts in its debugger
rm -f console
# It needs a terminal.
TERM=xterm timeout 600 script -qefc "bochs -q -f bochsrc -rc commands" /dev/null </dev/null >screen 2>&1 ||
  true
tr -d '\r' <console
state=$(tr -d '\r' <console | sed -n 's/^exit state \([0-9]*\)$/\1/p')
exit "${state:-1}"
