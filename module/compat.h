/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between the kernels that the module builds for.  The only file
 * that looks at LINUX_VERSION_CODE; each part says which kernel changed what.
 */
#ifndef _COWSNAP_COMPAT_H
#define _COWSNAP_COMPAT_H

#include <linux/fs.h>
#include <linux/fs_context.h>
#include <linux/mm.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/version.h>

/*
 * entries.c reads page tables as they are on x86-64 and arm64, where a PMD without a
 * table is a bad one.
 */
#if !defined(CONFIG_X86_64) && !defined(CONFIG_ARM64)
#error "cowsnap is for x86-64 and arm64"
#endif

/*
 * May an entry become writable where it is?  A CPU that remembers it as read-only
 * faults once more, and forgets; but one of arm64 does not forget, and has to be told,
 * which nothing does that is exported.
 */
#define COWSNAP_ENTRIES_UPGRADE		IS_ENABLED(CONFIG_X86_64)

/* 6.3 made vma->vm_flags read-only and brought vm_flags_init() and _mod(). */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void cowsnap_vm_flags_init(struct vm_area_struct *vma,
					 vm_flags_t flags)
{
	vma->vm_flags = flags;
}

static inline void cowsnap_vm_flags_mod(struct vm_area_struct *vma,
					vm_flags_t set, vm_flags_t clear)
{
	vma->vm_flags |= set;
	vma->vm_flags &= ~clear;
}
#else
static inline void cowsnap_vm_flags_init(struct vm_area_struct *vma,
					 vm_flags_t flags)
{
	vm_flags_init(vma, flags);
}

static inline void cowsnap_vm_flags_mod(struct vm_area_struct *vma,
					vm_flags_t set, vm_flags_t clear)
{
	vm_flags_mod(vma, set, clear);
}
#endif

/* By 7.3 nothing on a pseudo file system is executable; a region is, as a memfd. */
static inline void cowsnap_allow_exec(struct fs_context *fc)
{
	fc->s_iflags &= ~SB_I_NOEXEC;
}

/* 6.16 marks anonymous inodes as no regular files, which regions are. */
static inline void cowsnap_make_regular(struct inode *inode)
{
#ifdef S_ANON_INODE
	inode->i_flags &= ~S_ANON_INODE;
#endif
	inode->i_mode = S_IFREG | 0600;
}

/* 6.3 gave inode operations a mnt_idmap in place of the user namespace. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
#define cowsnap_idmap user_namespace
#else
#define cowsnap_idmap mnt_idmap
#endif

/* 6.5 replaced the splice that goes through .read_iter with one that copies. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
#define cowsnap_splice_read generic_file_splice_read
#else
#define cowsnap_splice_read copy_splice_read
#endif

/*
 * Zaps pages of a VMA, which stays.  6.3 exported a function for one VMA in place of
 * one that went on to its neighbours; 7.1 gave it another name.
 */
static inline void cowsnap_zap_vma(struct vm_area_struct *vma,
				   unsigned long addr, unsigned long bytes)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
	zap_page_range(vma, addr, bytes);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(7, 1, 0)
	zap_vma_range(vma, addr, bytes);
#else
	zap_page_range_single(vma, addr, bytes, NULL);
#endif
}

/* 6.6 brought the one that copies into a folio; 7.3 no longer has one for a page. */
static inline size_t cowsnap_copy_from_iter_atomic(struct page *page,
						   size_t offset, size_t bytes,
						   struct iov_iter *from)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
	return copy_page_from_iter_atomic(page, offset, bytes, from);
#else
	struct folio *folio = page_folio(page);

	offset += folio_page_idx(folio, page) << PAGE_SHIFT;
	return copy_folio_from_iter_atomic(folio, offset, bytes, from);
#endif
}

/* 6.6 gave pte_mkwrite() a VMA, for shadow stacks, and kept the plain one. */
static inline pte_t cowsnap_pte_mkwrite(pte_t pte)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
	return pte_mkwrite(pte);
#else
	return pte_mkwrite_novma(pte);
#endif
}

/*
 * set_pte_at() of an entry that was taken away a moment ago.  What that of arm64 does
 * besides is for pages that were not there before, and is not exported.
 */
static inline void cowsnap_put_pte_back(struct mm_struct *mm,
					unsigned long addr, pte_t *ptep,
					pte_t pte)
{
#ifdef CONFIG_ARM64
	set_pte(ptep, pte);
#else
	set_pte_at(mm, addr, ptep, pte);
#endif
}

/*
 * 6.14 frees a page table that MADV_DONTNEED emptied, even when a fault is about to
 * make entries in it: vm_insert_page() says -ENOMEM then, as if there were no memory,
 * and vm_insert_pages() -EFAULT.  Here that is -EBUSY, and the fault comes again.
 */
static inline int cowsnap_insert_pages(struct vm_area_struct *vma,
				       unsigned long addr, struct page **pages,
				       unsigned long *nr)
{
	int err = vm_insert_pages(vma, addr, pages, nr);

	return err == -EFAULT ? -EBUSY : err;
}

static inline int cowsnap_insert_page(struct vm_area_struct *vma,
				      unsigned long addr, struct page *page)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 14, 0)
	return vm_insert_page(vma, addr, page);
#else
	unsigned long nr = 1;

	return cowsnap_insert_pages(vma, addr, &page, &nr);
#endif
}

/*
 * Has the core to be kept from mapping a failed page by a PMD?  By 7.3 it does not mark
 * our folios any more when a page of theirs fails.  Not before 6.14, when inserting
 * entries did not always notice a PMD that another fault had made meanwhile.
 */
#define COWSNAP_PMDS_MAP_FAILED	\
	(LINUX_VERSION_CODE >= KERNEL_VERSION(6, 14, 0))

/*
 * May a folio have several pages?  Kernels without huge pages, those for PREEMPT_RT,
 * take one for split when they want it to be, by 6.12: MADV_COLD never ends then.
 */
static inline bool cowsnap_may_be_large(void)
{
	return IS_ENABLED(CONFIG_TRANSPARENT_HUGEPAGE);
}

/*
 * How many page-table entries map pages of a folio.  6.10 counts them in the folio;
 * before, each page had its count, which a PMD raised as well, so that it counts for
 * too many; and folio_mapcount() was not exported.
 */
static inline long cowsnap_folio_mapcount(struct folio *folio)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 10, 0)
	long count = 0;
	long n;

	if (folio_test_large(folio))
		count = folio_entire_mapcount(folio);
	for (n = 0; n < folio_nr_pages(folio); n++)
		count += atomic_read(&folio_page(folio, n)->_mapcount) + 1;
	return count;
#else
	return folio_mapcount(folio);
#endif
}

/*
 * copy_mc_to_kernel() of one page.  A CPU without ERMS, and arm64, has none that survives
 * a machine check, and takes memcpy(), which on x86-64 from 6.4 on takes three times as
 * many instructions there as copy_page().
 */
static inline unsigned long cowsnap_copy_mc_page(void *to, const void *from)
{
#ifdef CONFIG_X86_64
	if (boot_cpu_has(X86_FEATURE_ERMS))
		return copy_mc_to_kernel(to, from, PAGE_SIZE);
#endif
	copy_page(to, (void *)from);
	return 0;
}

#endif /* _COWSNAP_COMPAT_H */
