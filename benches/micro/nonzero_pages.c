/*
 * What a file holds and what it takes: pages of 4 KiB that are not all zero,
 * and bytes that the file system has allocated to it.
 *
 *     cc -O2 -o nonzero_pages nonzero_pages.c && ./nonzero_pages FILE
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096 };

int main(int count, char **arguments)
{
	static const char zero[PAGE];
	static char buffer[256 * PAGE];
	unsigned long long pages = 0;
	struct stat status;
	ssize_t got;

	int file = count == 2 ? open(arguments[1], O_RDONLY) : -1;
	if (file < 0 || fstat(file, &status) < 0) {
		perror("usage: nonzero_pages FILE");
		return 2;
	}
	while ((got = read(file, buffer, sizeof buffer)) > 0)
		for (ssize_t at = 0; at < got; at += PAGE)
			pages += memcmp(buffer + at, zero, got - at < PAGE ? got - at : PAGE) != 0;
	if (got < 0) {
		perror(arguments[1]);
		return 1;
	}
	printf("%llu %llu\n", pages, (unsigned long long)status.st_blocks * 512);
	return 0;
}
